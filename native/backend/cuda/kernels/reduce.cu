// Sums, maxima and minima over any dims of any layout. float32 and bfloat16 are summed in float64. The order of a sum
// depends on dims and strides only.
#include "backend/checks/reduce.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/groups.h"
#include "backend/cuda/kernels/parts.h"
#include "backend/nest.h"

namespace meshwork::cuda {
namespace {

constexpr int64_t kPartElements = 16384;  // at least, of a sum that is cut
constexpr int64_t kMaxBlocks = 1024;      // that sums are cut into parts for
constexpr int kColumnRows = kGroupThreads / kWarp;

// ---- what is accumulated: T is x's storage ----

template <class T>
struct SumState {
  using Type = double;
};
template <>
struct SumState<int32_t> {
  using Type = uint32_t;  // wraps around
};

template <class T>
struct Sum : SumOf {
  using A = typename SumState<T>::Type;
  __host__ __device__ __forceinline__ A identity() const { return A(0); }
};

// The largest, or the smallest, element; a NaN stays.
template <class T>
struct Extremum {
  using A = Compute<T>;
  bool smallest;

  __device__ __forceinline__ A identity() const {
    if constexpr (std::is_same_v<A, int32_t>) {
      return smallest ? INT32_MAX : INT32_MIN;
    } else {
      return static_cast<A>(smallest ? __builtin_huge_val() : -__builtin_huge_val());
    }
  }
  __device__ __forceinline__ A operator()(A a, A b) const { return smallest ? MinOf()(a, b) : MaxOf()(a, b); }
};

// y, of one of two types.
struct Target {
  void* y;
  DType dtype;

  template <class A>
  __device__ __forceinline__ void write(int64_t at, A value) const {
    switch (dtype) {
      case DType::f64:
        static_cast<double*>(y)[at] = static_cast<double>(value);
        break;
      case DType::bf16:
        static_cast<bf16*>(y)[at] = narrow<bf16>(value);
        break;
      case DType::f16:
        static_cast<f16*>(y)[at] = narrow<f16>(value);
        break;
      case DType::i32:
        static_cast<int32_t*>(y)[at] = static_cast<int32_t>(value);
        break;
      default:
        static_cast<float*>(y)[at] = static_cast<float>(value);
    }
  }
};

// The loops over what is kept (0: x, 1: y) and over what is reduced (x).
template <class T>
struct Reduction {
  const T* x;
  Target target;
  void* partial;  // [part][output] where a sum is cut into parts
  Nest<2> kept;
  Nest<1> reduced;
  int64_t outputs, count;  // count: elements an output is made of
  int parts;

  __device__ __forceinline__ int64_t reducedOffset(int64_t i) const {
    if (reduced.rank == 1) return i * reduced.strides[0][0];
    return reduced.offset(0, i, reduced.rank);
  }
  template <class A>
  __device__ __forceinline__ void write(int64_t output, int part, A value) const {
    if (parts == 1) {
      target.write(kept.offset(1, output, kept.rank), value);
    } else {
      static_cast<A*>(partial)[part * outputs + output] = value;
    }
  }
};

// ---- a thread an output: few elements each ----

template <class T, class Op>
__global__ void __launch_bounds__(kGroupThreads) reduceEach(Reduction<T> r, Op op) {
  using A = typename Op::A;
  const int64_t step = int64_t{gridDim.x} * kGroupThreads;
  for (int64_t i = int64_t{blockIdx.x} * kGroupThreads + threadIdx.x; i < r.outputs; i += step) {
    const T* x = r.x + r.kept.offset(0, i, r.kept.rank);
    A value = op.identity();
    for (int64_t k = 0; k < r.count; ++k) value = op(value, static_cast<A>(widen(x[r.reducedOffset(k)])));
    r.write(i, 0, value);
  }
}

// ---- a group an output, or a part of one ----

template <int kWidth, bool kBlock, class T, class Op>
__global__ void __launch_bounds__(kGroupThreads) reduceRows(Reduction<T> r, Op op) {
  using A = typename Op::A;
  const Group<kBlock> group;
  for (int64_t unit = group.first(); unit < r.outputs * r.parts; unit += group.step()) {
    const int64_t output = unit / r.parts, packs = r.count / kWidth;
    const auto part = static_cast<int>(unit - output * r.parts);
    const T* x = r.x + r.kept.offset(0, output, r.kept.rank);
    const int64_t end = partBegin(packs, part + 1, r.parts);
    A values[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] = op.identity();
    for (int64_t i = partBegin(packs, part, r.parts) + group.lane(); i < end; i += group.kSize) {
      A v[kWidth];
      load(v, kWidth > 1 ? x + i * kWidth : x + r.reducedOffset(i));
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[k] = op(values[k], v[k]);
    }
#pragma unroll
    for (int k = 1; k < kWidth; ++k) values[0] = op(values[0], values[k]);
    const A value = group.reduce(values[0], op);
    if (group.lane() == 0) r.write(output, part, value);
  }
}

// ---- neighbouring outputs side by side: x is read along the innermost kept loop ----

template <int kWidth, class T, class Op>
__global__ void __launch_bounds__(kGroupThreads) reduceColumns(Reduction<T> r, Op op) {
  using A = typename Op::A;
  constexpr int kTile = kWarp * kWidth;
  MESHWORK_SHARED_ARRAY(A, tile, [kColumnRows][kTile]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, outer = r.kept.rank - 1;
  const int64_t width = r.kept.dims[outer], tiles = (width + kTile - 1) / kTile, units = r.outputs / width * tiles;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t group = unit / tiles, first = (unit - group * tiles) * kTile, column = first + lane * kWidth;
    const int part = blockIdx.y;
    A values[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] = op.identity();
    if (column < width) {
      const T* x = r.x + r.kept.offset(0, group, outer) + column;
      const int64_t end = partBegin(r.count, part + 1, r.parts);
      for (int64_t i = partBegin(r.count, part, r.parts) + warp; i < end; i += kColumnRows) {
        A v[kWidth];
        load(v, x + r.reducedOffset(i));
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[k] = op(values[k], v[k]);
      }
    }
    __syncthreads();  // the last unit's tile has been read
#pragma unroll
    for (int k = 0; k < kWidth; ++k) tile[warp][lane * kWidth + k] = values[k];
    __syncthreads();
    for (int c = threadIdx.x; c < kTile && first + c < width; c += kGroupThreads) {
      A value = tile[0][c];
      for (int row = 1; row < kColumnRows; ++row) value = op(value, tile[row][c]);
      r.write(group * width + first + c, part, value);
    }
  }
}

// ---- the parts, in order ----

template <class Op>
__global__ void __launch_bounds__(kGroupThreads)
    combineParts(Target target, Nest<2> kept, const typename Op::A* partial, int64_t outputs, int parts, Op op) {
  const int64_t step = int64_t{gridDim.x} * kGroupThreads;
  for (int64_t i = int64_t{blockIdx.x} * kGroupThreads + threadIdx.x; i < outputs; i += step) {
    auto value = partial[i];
    for (int part = 1; part < parts; ++part) value = op(value, partial[part * outputs + i]);
    target.write(kept.offset(1, i, kept.rank), value);
  }
}

// ---- choosing ----

// Whether x, and all its loops but the innermost of `unit`, step by multiples of 16 bytes.
template <int kOther, class T>
bool wide(const Reduction<T>& r, const Nest<kOther>& unit) {
  const int inner = unit.rank - 1;
  const auto multiple = [](int64_t stride) { return stride * static_cast<int64_t>(sizeof(T)) % 16 == 0; };
  bool result = inner >= 0 && unit.strides[0][inner] == 1 && multiple(unit.dims[inner]) && alignedTo(r.x, 16);
  const auto* own = static_cast<const void*>(&unit);
  for (int d = 0; d < r.kept.rank; ++d)
    result = result && ((own == &r.kept && d == inner) || multiple(r.kept.strides[0][d]));
  for (int d = 0; d < r.reduced.rank; ++d)
    result = result && ((own == &r.reduced && d == inner) || multiple(r.reduced.strides[0][d]));
  return result;
}

template <class T, class Op>
void reduce(Device& device, Reduction<T>& r, Op op) {
  using A = typename Op::A;
  const Nest<2>& kept = r.kept;
  const int64_t bytes = r.outputs * static_cast<int64_t>(sizeof(A));
  const bool columns = kept.rank > 0 && kept.strides[0][kept.rank - 1] == 1 && r.reduced.rank > 0 &&
                       r.reduced.strides[0][r.reduced.rank - 1] != 1;
  r.parts = 1;
  if (columns && r.count >= kColumnRows) {
    const bool isWide = kWide<T> > 1 && wide(r, kept);
    withBool(isWide, [&](auto wideColumns) {
      constexpr int kWidth = wideColumns ? kWide<T> : 1, kTile = kWarp * kWidth;
      const int64_t width = kept.dims[kept.rank - 1], units = r.outputs / width * ((width + kTile - 1) / kTile);
      r.parts = partsOf(r.count, 64, kMaxBlocks / units, bytes);
      launch(device, dim3(blocksFor(device, units, 1), static_cast<unsigned>(r.parts)), kGroupThreads, 0,
             reduceColumns<kWidth, T, Op>, r, op);
    });
  } else if (r.count < kWarp) {
    launch(device, blocksFor(device, r.outputs, kGroupThreads), kGroupThreads, 0, reduceEach<T, Op>, r, op);
  } else {
    r.parts = partsOf(r.count, kPartElements, kMaxBlocks / r.outputs, bytes);
    const bool isWide = kWide<T> > 1 && r.reduced.rank == 1 && wide(r, r.reduced);
    withBool(r.count >= 4 * kGroupThreads, [&](auto block) {
      withBool(isWide, [&](auto wideRow) {
        launchGroups<block>(device, r.outputs * r.parts, reduceRows < wideRow ? kWide<T> : 1, block, T, Op >, r, op);
      });
    });
  }
  if (r.parts > 1) {
    launch(device, blocksFor(device, r.outputs, kGroupThreads), kGroupThreads, 0, combineParts<Op>, r.target, r.kept,
           static_cast<const A*>(r.partial), r.outputs, r.parts, op);
  }
}

template <class T>
void reduceType(const Call& call) {
  const View &x = *call.in[0].view, &y = *call.out[0].view;
  Device& device = deviceOf(call);
  Reduction<T> r{};
  r.x = call.in[0].as<T>();
  r.target = {call.out[0].data, y.dtype};
  r.partial = device.workspace;
  for (int d = 0; d < x.rank; ++d) {
    if (y.dims[d] == x.dims[d]) {
      r.kept.add(x.dims[d], {x.strides[d], y.strides[d]});
    } else {
      r.reduced.add(x.dims[d], {x.strides[d]});
    }
  }
  r.kept.join();
  r.reduced.join();
  r.outputs = r.kept.count(r.kept.rank);
  r.count = r.reduced.count(r.reduced.rank);
  const int32_t kind = call.attrs[attr::reduce::kind];
  if (kind == 0) return reduce(device, r, Sum<T>());
  reduce(device, r, Extremum<T>{kind == 2});
}

void runReduce(const Call& call) {
  if (call.out[0].view->count() == 0) return;
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return reduceType<double>(call);
    case DType::i32:
      return reduceType<int32_t>(call);
    case DType::bf16:
      return reduceType<bf16>(call);
    case DType::f16:
      return reduceType<f16>(call);
    default:
      return reduceType<float>(call);
  }
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(reduce, {Op::reduce, checkReduce, runReduce})
