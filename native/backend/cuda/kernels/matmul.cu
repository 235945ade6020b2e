// Matrix products: by cuBLASLt (../matmul) where it is found and has an epilogue with exactly our meaning, else by the
// kernels here: matrix instructions for bfloat16 and float16, fused multiply-adds for float32 and float64. A block of
// theirs sums all of k by itself, in order.
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/matmul_operands.h"
#include "backend/cuda/kernels/mma.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/matmul/library.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

// The block's tile of the result. Tiles of one band of columns follow each other, so that they share b in the cache.
struct Tile {
  int64_t batch, row, column;
  __device__ Tile(int64_t m, int64_t n, int kRows, int kColumns) {
    const int64_t down = (m + kRows - 1) / kRows, across = (n + kColumns - 1) / kColumns, at = blockIdx.x;
    row = at % down * kRows;
    column = at / down % across * kColumns;
    batch = at / down / across;
  }
};
unsigned tilesOf(int64_t batch, int64_t m, int64_t n, int64_t rows, int64_t columns) {
  return static_cast<unsigned>(batch * ((m + rows - 1) / rows) * ((n + columns - 1) / columns));
}

// ---- by fused multiply-adds: 64 x 64 (16 x 64 where rows are few) a block, 4 x 4 (1 x 4) a thread ----

constexpr int kFmaColumns = 64, kFmaK = 16, kFmaFewRows = 16;

__device__ __forceinline__ float multiplyAdd(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiplyAdd(double a, double b, double c) { return fma(a, b, c); }

// Elements [first, first + kCount) x [k, k + kFmaK) into to[k][...], runs of kCount + 1; zeros beyond. Neighbouring
// threads read along the unit stride. `at(i, p)` gives the address of element i of k-row p.
template <int kCount, class T, class S, class At>
__device__ __forceinline__ void loadStrip(S* to, bool alongK, int64_t first, int64_t count, int64_t k, int64_t most,
                                          const At& at) {
  for (int x = static_cast<int>(threadIdx.x); x < kCount * kFmaK; x += kThreads) {
    const int i = alongK ? x / kFmaK : x % kCount, p = alongK ? x % kFmaK : x / kCount;
    to[p * (kCount + 1) + i] = first + i < count && k + p < most ? static_cast<S>(widen(*at(first + i, k + p))) : S(0);
  }
}

template <class T, class S, int kRows>
__global__ void __launch_bounds__(kThreads) multiplyByFma(Side<T> a, Side<T> b, Finish<T> finish) {
  constexpr int kTileRows = 16 * kRows;
  MESHWORK_SHARED_ARRAY(S, left, [kFmaK * (kTileRows + 1)]);
  MESHWORK_SHARED_ARRAY(S, right, [kFmaK * (kFmaColumns + 1)]);
  const int tx = static_cast<int>(threadIdx.x % 16), ty = static_cast<int>(threadIdx.x / 16);
  const Tile tile(finish.m, finish.n, kTileRows, kFmaColumns);
  S sums[kRows][4] = {};
  for (int64_t k = 0; k < a.columns; k += kFmaK) {
    __syncthreads();
    loadStrip<kTileRows, T>(left, a.column == 1, tile.row, a.rows, k, a.columns,
                            [&](int64_t i, int64_t p) { return a.at(tile.batch, i, p); });
    loadStrip<kFmaColumns, T>(right, b.column != 1, tile.column, b.columns, k, b.rows,
                              [&](int64_t j, int64_t p) { return b.at(tile.batch, p, j); });
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kFmaK; ++p) {
      S x[kRows], y[4];
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[r] = left[p * (kTileRows + 1) + ty * kRows + r];
#pragma unroll
      for (int c = 0; c < 4; ++c) y[c] = right[p * (kFmaColumns + 1) + tx + 16 * c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[r][c] = multiplyAdd(x[r], y[c], sums[r][c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = tile.row + ty * kRows + r;
#pragma unroll
    for (int c = 0; c < 4; ++c) finish.store(tile.batch, row, tile.column + tx + 16 * c, sums[r][c]);
  }
}

// ---- by matrix instructions: 128 x 128 a block, 8 warps of 64 x 32 ----

constexpr int kMmaTile = 128, kMmaK = 32;

// A side's tile as it lies in memory: rows of the run along the unit stride, padded by one matrix row so that the rows
// of a matrix lie in different banks.
template <class T, bool kAlongK>
struct SharedTile {
  static constexpr int kRun = kAlongK ? kMmaK : kMmaTile, kRuns = kAlongK ? kMmaTile : kMmaK;
  static constexpr int kPitch = kRun + 8, kElements = kRuns * kPitch;

  // Elements of the result's dim from `first` on, and of k; `stride` is between runs.
  static __device__ void copy(T* to, const T* from, int64_t stride, bool aligned, int64_t first, int64_t count,
                              int64_t k, int64_t most) {
    const int64_t run = kAlongK ? first : k, runs = kAlongK ? count : most;
    const int64_t start = kAlongK ? k : first, end = kAlongK ? most : count;
    for (int x = static_cast<int>(threadIdx.x); x < kRuns * kRun / 8; x += kThreads) {
      const int row = x / (kRun / 8), column = x % (kRun / 8) * 8;
      const int64_t left = run + row < runs ? end - start - column : 0;
      const int filled = static_cast<int>(max(int64_t{0}, min(int64_t{8}, left)));
      const T* source = filled > 0 ? from + (run + row) * stride + start + column : from;
      T* place = to + row * kPitch + column;
      if (aligned) {
        copyAsync16(place, source, 2 * filled);
      } else {
        Pack<T, 8> pack;
#pragma unroll
        for (int i = 0; i < 8; ++i) pack.v[i] = i < filled ? source[i] : T{0};
        *reinterpret_cast<Pack<T, 8>*>(place) = pack;
      }
    }
  }

  // The A operand of rows [at, at + 16) and k [k, k + 16).
  static __device__ void loadA(uint32_t (&x)[4], const T* tile, int at, int k) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (kAlongK) {
      loadMatrices(x, tile + (at + lane % 16) * kPitch + k + lane / 16 * 8);
    } else {
      loadMatricesTransposed(x, tile + (k + lane / 16 * 8 + lane % 8) * kPitch + at + lane / 8 % 2 * 8);
    }
  }
  // The B operands of columns [at, at + 8) and [at + 8, at + 16), and k [k, k + 16).
  static __device__ void loadB(uint32_t (&x)[4], const T* tile, int at, int k) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (kAlongK) {
      loadMatrices(x, tile + (at + lane / 16 * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * 8);
    } else {
      loadMatricesTransposed(x, tile + (k + lane % 16) * kPitch + at + lane / 16 * 8);
    }
  }
};

template <class T, bool kLeftAlongK, bool kRightAlongK>
__global__ void __launch_bounds__(kThreads) multiplyByMma(Side<T> a, Side<T> b, Finish<T> finish) {
  using Left = SharedTile<T, kLeftAlongK>;
  using Right = SharedTile<T, kRightAlongK>;
  MESHWORK_DYNAMIC_SHARED(memory);
  T* left = reinterpret_cast<T*>(memory);
  T* right = left + 2 * Left::kElements;
  const Tile tile(finish.m, finish.n, kMmaTile, kMmaTile);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int row = warp % 2 * 64, column = warp / 2 * 32;
  const int64_t most = a.columns;
  const T *from = a.at(tile.batch, 0, 0), *from2 = b.at(tile.batch, 0, 0);
  const auto start = [&](int64_t k, int stage) {
    if (k < most) {
      Left::copy(left + stage * Left::kElements, from, kLeftAlongK ? a.row : a.column, a.aligned, tile.row, a.rows, k,
                 most);
      Right::copy(right + stage * Right::kElements, from2, kRightAlongK ? b.column : b.row, b.aligned, tile.column,
                  b.columns, k, most);
    }
    commitCopies();
  };
  float sums[4][4][4] = {};
  start(0, 0);
  int stage = 0;
  for (int64_t k = 0; k < most; k += kMmaK, stage ^= 1) {
    start(k + kMmaK, stage ^ 1);
    waitCopies<1>();
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kMmaK; p += 16) {
      uint32_t x[4][4], y[2][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) Left::loadA(x[r], left + stage * Left::kElements, row + 16 * r, p);
#pragma unroll
      for (int c = 0; c < 2; ++c) Right::loadB(y[c], right + stage * Right::kElements, column + 16 * c, p);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint32_t pair[2] = {y[c / 2][c % 2 * 2], y[c / 2][c % 2 * 2 + 1]};
          mmaShort<T>(sums[r][c], x[r], pair);
        }
      }
    }
    __syncthreads();  // before the stage is filled again
  }
  waitCopies<0>();
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        finish.store(tile.batch, tile.row + row + 16 * r + lane / 4 + i / 2 * 8,
                     tile.column + column + 8 * c + lane % 4 * 2 + i % 2, sums[r][c][i]);
      }
    }
  }
}

// ---- on the host ----

template <class T, class S>
void launchFma(const Call& call) {
  const Operand &a = call.in[0], &d = call.out[0];
  withBool(d.dim(1) <= kFmaFewRows, [&](auto few) {
    constexpr int kRows = few ? 1 : 4;
    launch(deviceOf(call), tilesOf(a.dim(0), d.dim(1), d.dim(2), 16 * kRows, kFmaColumns), kThreads, 0,
           multiplyByFma<T, S, kRows>, sideOf<T>(a), sideOf<T>(call.in[1]), finishOf<T>(call));
  });
}

template <class T, bool kLeftAlongK, bool kRightAlongK>
void launchMma(const Call& call) {
  constexpr size_t kShared =
      2 * (SharedTile<T, kLeftAlongK>::kElements + SharedTile<T, kRightAlongK>::kElements) * sizeof(T);
  const Operand &a = call.in[0], &d = call.out[0];
  launch(deviceOf(call), tilesOf(a.dim(0), d.dim(1), d.dim(2), kMmaTile, kMmaTile), kThreads, kShared,
         multiplyByMma<T, kLeftAlongK, kRightAlongK>, sideOf<T>(a), sideOf<T>(call.in[1]), finishOf<T>(call));
}

template <class T>
void multiplyShort(const Call& call) {
  withBool(byRows(call.in[0]),
           [&](auto left) { withBool(!byRows(call.in[1]), [&](auto right) { launchMma<T, left, right>(call); }); });
}

void prepareMatmul(const Call& call) {
  if (!sumsInDouble(call.in[0], call.in[1])) prepareLibrary(call);
}

void runMatmul(const Call& call) {
  const Operand &a = call.in[0], &b = call.in[1];
  const bool exact = sumsInDouble(a, b);
  if (!exact && runLibrary(call)) return;
  switch (a.view->dtype) {
    case DType::f64:
      return launchFma<double, double>(call);
    case DType::bf16:
      return multiplyShort<bf16>(call);
    case DType::f16:
      return multiplyShort<f16>(call);
    default:
      return exact ? launchFma<float, double>(call) : launchFma<float, float>(call);
  }
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(matmul, {Op::matmul, checkMatmul, runMatmul, prepareMatmul})
