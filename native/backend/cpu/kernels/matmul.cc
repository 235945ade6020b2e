// Matrix products: blocks of the result are computed one per task, from packed panels (see gemm.h), by three ways
// chosen by shape alone. Every block sums over all of k by itself, so that thread counts change no bits.
#include "backend/checks/matmul.h"

#include "backend/cpu/gemm.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kPanelBytes = 1536;     // k of one panel, in bytes of the compute type
constexpr int64_t kBlockRows = 384;       // rows of a packed left block: with a panel's k it fills half of a 1 MiB L2
constexpr int64_t kDirectRows = 24;       // up to here a right side with unit stride in n is read in place
constexpr int64_t kDirectColumns = 4096;  // and its sums wait in the L2
constexpr int64_t kDotRowsLimit = 16;     // up to here one with unit stride in k is multiplied by inner products,
constexpr int64_t kDotLeastK = 256;       // if k is worth the sums over the lanes,
constexpr int64_t kDotFewRows = 4;        // or rows are few
constexpr int64_t kDotBlockColumns = 128;
constexpr double kExactMostProducts = 1 << 22;  // up to here, b m n k, float32 products sum in float64: see
constexpr int64_t kExactMostK = 4096;           // sumsInDouble()
constexpr int kWideVectors = MESHWORK_ISA_LEVEL == 2 ? 8 : 4;  // columns of a single row's tile: longer runs of memory

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t roundUp(int64_t a, int64_t b) { return ceilDiv(a, b) * b; }

// What happens to the sums of a row before they are the result.
template <class S>
struct Finish {
  S alpha;
  int32_t flags;
};

// d = act(alpha * sums + bias) + residual (+ d) for `count` elements of a vector; kWhole: all lanes.
template <bool kWhole, class S, class D, class R>
MESHWORK_INLINE void finishVector(const S* sums, const S* bias, const R* residual, D* d, int count,
                                  const Finish<S>& how) {
  auto get = [count](const auto* from) {
    if constexpr (kWhole) {
      return loadAs<S>(from);
    } else {
      return loadPartialAs<S>(from, count);
    }
  };
  Vec<S> value = load(sums) * how.alpha;
  if (how.flags & matmul_flag::bias) value += load(bias);
  if (how.flags & matmul_flag::gelu) value = gelu(value);
  if (how.flags & matmul_flag::silu) value = silu(value);
  if (how.flags & matmul_flag::residual) value += get(residual);
  if (how.flags & matmul_flag::accumulate) value += get(d);
  if constexpr (kWhole) {
    store(d, value);
  } else {
    storePartial(d, value, count);
  }
}

// `sums` and `bias` are readable up to whole vectors.
template <class S, class D, class R>
void finishRow(const S* sums, const S* bias, const void* residual, void* d, int64_t columns, const Finish<S>& how) {
  constexpr int lanes = kLanes<S>;
  const R* more = static_cast<const R*>(residual);
  D* to = static_cast<D*>(d);
  int64_t j = 0;
  for (; j + lanes <= columns; j += lanes) finishVector<true>(sums + j, bias + j, more + j, to + j, lanes, how);
  if (j < columns) {
    finishVector<false>(sums + j, bias + j, more + j, to + j, static_cast<int>(columns - j), how);
  }
}

template <class S>
using FinishRow = void (*)(const S*, const S*, const void*, void*, int64_t, const Finish<S>&);

template <class T, class S>
FinishRow<S> chooseFinish(bool shortResult, bool shortResidual) {
  if constexpr (!std::is_same_v<T, bf16>) {
    return finishRow<S, T, T>;
  } else {
    if (shortResult) return shortResidual ? finishRow<S, T, T> : finishRow<S, T, S>;
    return shortResidual ? finishRow<S, S, T> : finishRow<S, S, S>;
  }
}

// A block of the result, and the scratch memory of the thread that computes it.
struct Block {
  int64_t batch, row, rows, column, columns;
  std::byte* workspace;
};

// T is the storage type of a and b, S the type of the sums and of all else before the result is rounded.
template <class T, class S = Compute<T>>
class Matmul {
  static constexpr bool kExact = !std::is_same_v<S, Compute<T>>;  // sums are wider than results

 public:
  explicit Matmul(const Call& call) : call_(call) {
    const Operand &a = call.in[0], &b = call.in[1];
    m_ = a.dim(1), n_ = b.dim(2), k_ = a.dim(2);
    leftByRows_ = a.stride(2) == 1 || k_ <= 1;
    rightByRows_ = b.stride(2) == 1 || n_ <= 1;
    leftStride_ = a.stride(leftByRows_ ? 1 : 2);
    rightStride_ = b.stride(rightByRows_ ? 1 : 2);
    const int32_t flags = call.attrs[attr::matmul::flags];
    how_ = {static_cast<S>(call.floatAttr(attr::matmul::alpha)), flags};
    residual_ = flags & matmul_flag::residual ? &call.in[call.inputs - 1] : nullptr;
    const bool shortResult = call.out[0].view->dtype == DType::bf16;
    finish_ = chooseFinish<T, S>(shortResult, residual_ && residual_->view->dtype == DType::bf16);
    plain_ = flags == 0 && how_.alpha == S{1} && !shortResult && !kExact;
    group_ = kExact ? k_ : sumGroup(k_);
  }

  void run() {
    const int64_t batch = call_.in[0].dim(0);
    if (batch == 0 || m_ == 0 || n_ == 0) return;
    const bool byDots = !rightByRows_ && m_ <= (k_ >= kDotLeastK ? kDotRowsLimit : kDotFewRows);
    if (byDots) {
      planDots();
    } else {
      planPanels(batch);
    }
    const int64_t rowBlocks = ceilDiv(m_, blockRows_), columnBlocks = ceilDiv(n_, blockColumns_);
    call_.pool->run(batch * rowBlocks * columnBlocks, [&](int64_t index, int thread) {
      Block block;
      block.column = index % columnBlocks * blockColumns_;
      block.row = index / columnBlocks % rowBlocks * blockRows_;
      block.batch = index / columnBlocks / rowBlocks;
      block.columns = std::min(blockColumns_, n_ - block.column);
      block.rows = std::min(blockRows_, m_ - block.row);
      block.workspace = call_.pool->workspace(thread);
      if (byDots) {
        runDots(block);
      } else if (wide_) {
        runPanels<kWideVectors>(block);
      } else {
        runPanels<kTileVectors>(block);
      }
    });
  }

 private:
  const T* left(const Block& at, int64_t row, int64_t k) const {
    const Operand& a = call_.in[0];
    return a.as<T>() + at.batch * a.stride(0) + (leftByRows_ ? row * leftStride_ + k : k * leftStride_ + row);
  }
  const T* right(const Block& at, int64_t k, int64_t column) const {
    const Operand& b = call_.in[1];
    return b.as<T>() + at.batch * b.stride(0) + (rightByRows_ ? k * rightStride_ + column : column * rightStride_ + k);
  }
  static std::byte* element(const Operand& x, int64_t batch, int64_t row, int64_t column) {
    const int64_t at = batch * x.stride(0) + row * x.stride(1) + column;
    return x.data + at * dtypeSize(x.view->dtype);
  }

  // The bias of columns [column, column + n), as S.
  void fillBias(int64_t column, int64_t n, S* to) const {
    if (!(how_.flags & matmul_flag::bias)) return;
    const Operand& bias = call_.in[2];
    const int64_t stride = bias.stride(0);
    for (int64_t j = 0; j < n; ++j) {
      if constexpr (std::is_same_v<T, bf16>) {
        if (bias.view->dtype == DType::bf16) {
          to[j] = widen(bias.as<T>()[(column + j) * stride]);
          continue;
        }
      }
      to[j] = bias.as<Compute<T>>()[(column + j) * stride];
    }
  }

  // Turns rows of sums (`ld` apart) into the result at (row, column).
  void finishRows(const Block& at, int64_t row, int64_t rows, int64_t column, int64_t columns, const S* sums,
                  int64_t ld, const S* bias) const {
    for (int64_t i = 0; i < rows; ++i) {
      const void* more = residual_ ? element(*residual_, at.batch, row + i, column) : nullptr;
      finish_(sums + i * ld, bias, more, element(call_.out[0], at.batch, row + i, column), columns, how_);
    }
  }

  // ---- by panels ----

  void planPanels(int64_t batch) {
    const int64_t budget = static_cast<int64_t>(call_.pool->workspaceBytes() / sizeof(S));
    direct_ = rightByRows_ && m_ <= kDirectRows;
    wide_ = direct_ && m_ == 1;
    const int64_t width = (wide_ ? kWideVectors : kTileVectors) * kLanes<S>;
    const int64_t most = direct_ ? directK() : kPanelBytes / static_cast<int64_t>(sizeof(S));
    panels_ = std::max<int64_t>(1, ceilDiv(k_, most));
    panelK_ = roundUp(ceilDiv(k_, panels_), 4);
    panels_ = std::max<int64_t>(1, ceilDiv(k_, std::max<int64_t>(4, panelK_)));
    const int64_t rowsLimit = std::max<int64_t>(kTileRows, budget / 2 / most / kTileRows * kTileRows);
    const int64_t rowsMost = std::min(kBlockRows, rowsLimit);
    blockRows_ = std::min(roundUp(ceilDiv(m_, ceilDiv(m_, rowsMost)), kTileRows), rowsMost);
    // Sums wait in memory between panels of k: room for them bounds the columns.
    const int64_t room = budget - blockRows_ * panelK_ - (panelK_ + 1) * width - kTileRows * width;
    int64_t columnsMost = panels_ == 1 ? roundUp(n_, width) : std::max(width, room / blockRows_ / width * width);
    if (direct_) columnsMost = std::min(columnsMost, kDirectColumns);
    blockColumns_ = roundUp(ceilDiv(n_, ceilDiv(n_, columnsMost)), width);
    splitForThreads(batch, width);
  }

  // k of one panel where the right side is read in place: so many of its rows are read side by side, each from end to
  // end, which is what the processor's prefetching follows best.
  int64_t directK() const { return m_ <= 4 ? 8 : 16; }

  // Halves blocks until every thread has a few. Sums run over all of k in any block: the bits stay.
  void splitForThreads(int64_t batch, int64_t width) {
    const int threads = call_.pool->threads();
    if (threads == 1) return;
    const int64_t leastRows = 4 * kTileRows, leastColumns = 4 * width;
    while (batch * ceilDiv(m_, blockRows_) * ceilDiv(n_, blockColumns_) < 3 * threads) {
      if (blockColumns_ > leastColumns && (blockColumns_ >= blockRows_ || blockRows_ <= leastRows)) {
        blockColumns_ = roundUp(blockColumns_ / 2, width);
      } else if (blockRows_ > leastRows) {
        blockRows_ = roundUp(blockRows_ / 2, kTileRows);
      } else {
        break;
      }
    }
  }

  template <int kVectors>
  void runPanels(const Block& at) const {
    constexpr int width = kVectors * kLanes<S>;
    S* packedRight = reinterpret_cast<S*>(at.workspace);  // every part but the last is whole cache lines
    S* bias = packedRight + panelK_ * width;
    S* sums = bias + width;
    S* packedLeft = sums + (panels_ == 1 ? kTileRows * width : blockRows_ * blockColumns_);
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t k0 = panel * panelK_;
      const int64_t k = std::max<int64_t>(0, std::min(panelK_, k_ - k0));
      packLeft(at, k0, k, packedLeft);
      for (int64_t j = 0; j < at.columns; j += width) {
        const int columns = static_cast<int>(std::min<int64_t>(width, at.columns - j));
        if (panel == panels_ - 1) fillBias(at.column + j, columns, bias);
        S* tiles = panels_ == 1 ? sums : sums + j * blockRows_;
        const Strip strip = {panel, j, columns, k, packedLeft, bias, tiles};
        if (direct_ && columns == width) {
          multiplyStrip<kVectors>(at, strip, right(at, k0, at.column + j), rightStride_);
        } else if (columns > kLanes<S>) {
          packRight(at, k0, k, at.column + j, columns, packedRight, width);
          multiplyStrip<kVectors>(at, strip, packedRight, width);
        } else {
          packRight(at, k0, k, at.column + j, columns, packedRight, kLanes<S>);
          multiplyStrip<1>(at, strip, packedRight, kLanes<S>);
        }
      }
    }
  }

  void packLeft(const Block& at, int64_t k0, int64_t k, S* to) const {
    for (int64_t i = 0; i < at.rows; i += kTileRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kTileRows, at.rows - i));
      const T* from = left(at, at.row + i, k0);
      if (leftByRows_) {
        packTransposed(from, leftStride_, rows, k, to + i * k, rows);
      } else {
        packStraight(from, leftStride_, rows, k, to + i * k, rows);
      }
    }
  }

  void packRight(const Block& at, int64_t k0, int64_t k, int64_t column, int columns, S* to, int width) const {
    const T* from = right(at, k0, column);
    if (rightByRows_) {
      packStraight(from, rightStride_, columns, k, to, width);
    } else {
      packTransposed(from, rightStride_, columns, k, to, width);
    }
  }

  // One panel of k times one panel of columns, for all rows of the block.
  struct Strip {
    int64_t panel, column;
    int columns;
    int64_t k;
    const S* packedLeft;
    const S* bias;
    S* tiles;  // of kTileRows rows each, one after the other (all in the same place when there is one panel of k)
  };

  template <int kVectors, class B>
  void multiplyStrip(const Block& at, const Strip& strip, const B* right, int64_t ldRight) const {
    constexpr int width = kVectors * kLanes<S>;
    const bool first = strip.panel == 0, last = strip.panel == panels_ - 1;
    const bool inPlace = last && plain_ && strip.columns == width;
    const int64_t column = at.column + strip.column;
    for (int64_t i = 0; i < at.rows; i += kTileRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kTileRows, at.rows - i));
      S* tile = panels_ == 1 ? strip.tiles : strip.tiles + i * width;
      S* to = inPlace ? reinterpret_cast<S*>(element(call_.out[0], at.batch, at.row + i, column)) : tile;
      const int64_t ldTo = inPlace ? call_.out[0].stride(1) : width;
      findMicroKernel<kVectors, S, B>(rows)(strip.k, group_, strip.packedLeft + i * strip.k, right, ldRight,
                                            first ? nullptr : tile, width, to, ldTo);
      if (last && !inPlace) finishRows(at, at.row + i, rows, column, strip.columns, tile, width, strip.bias);
    }
  }

  // ---- by inner products: few rows, both sides with unit stride in k ----

  void planDots() {
    const int64_t budget = static_cast<int64_t>(call_.pool->workspaceBytes() / sizeof(S));
    const int64_t most = std::max<int64_t>(64, budget / 2 / kDotRowsLimit / 64 * 64);
    panels_ = std::max<int64_t>(1, ceilDiv(k_, most));
    panelK_ = roundUp(ceilDiv(k_, panels_), 64);
    panels_ = std::max<int64_t>(1, ceilDiv(k_, std::max<int64_t>(64, panelK_)));
    blockRows_ = m_;
    blockColumns_ = kDotBlockColumns;
  }

  void runDots(const Block& at) const {
    S* sums = reinterpret_cast<S*>(at.workspace);
    S* bias = sums + at.rows * kDotBlockColumns;
    S* copied = bias + kDotBlockColumns;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t k0 = panel * panelK_;
      const int64_t k = std::max<int64_t>(0, std::min(panelK_, k_ - k0));
      int64_t ld = 0;
      const S* rows = leftRows(at, k0, k, copied, ld);
      dotBlock(static_cast<int>(at.rows), static_cast<int>(at.columns), k, rows, ld, right(at, k0, at.column),
               rightStride_, panel > 0, sums, kDotBlockColumns);
    }
    fillBias(at.column, at.columns, bias);
    finishRows(at, at.row, at.rows, at.column, at.columns, sums, kDotBlockColumns, bias);
  }

  // The block's rows of the left side with unit stride in k, as S: in place, or copied.
  const S* leftRows(const Block& at, int64_t k0, int64_t k, S* copied, int64_t& ld) const {
    if constexpr (std::is_same_v<T, S>) {
      if (leftByRows_) {
        ld = leftStride_;
        return left(at, at.row, k0);
      }
    }
    ld = panelK_;
    for (int64_t i = 0; i < at.rows; ++i) {
      const T* from = left(at, at.row + i, k0);
      const int64_t step = leftByRows_ ? 1 : leftStride_;
      for (int64_t p = 0; p < k; ++p) copied[i * panelK_ + p] = widen(from[p * step]);
    }
    return copied;
  }

  const Call& call_;
  int64_t m_, n_, k_, group_;
  bool leftByRows_, rightByRows_;  // unit stride in k (left), in n (right)
  int64_t leftStride_, rightStride_;
  Finish<S> how_;
  const Operand* residual_;
  FinishRow<S> finish_;
  bool plain_;  // the sums are the result
  bool direct_ = false, wide_ = false;
  int64_t panels_ = 1, panelK_ = 0, blockRows_ = 0, blockColumns_ = 0;
};

// Whether float32 products sum in float64. Small ones do: what they take is mostly not arithmetic, and results as exact
// as float32 can hold them keep tiny gradients right, which Adam divides by their own size. A larger product pays with
// up to half its speed; a long k, with packed panels of twice the size.
bool sumsInDouble(const Call& call) {
  const Operand &a = call.in[0], &b = call.in[1];
  const int64_t k = a.dim(2);
  if (k > kExactMostK) return false;
  // In double, as dims can be large where others are zero.
  const double results = static_cast<double>(a.dim(0)) * static_cast<double>(a.dim(1)) * static_cast<double>(b.dim(2));
  return results * static_cast<double>(k) <= kExactMostProducts;
}

void runMatmul(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return Matmul<double>(call).run();
    case DType::bf16:
      return Matmul<bf16>(call).run();
    default:
      return sumsInDouble(call) ? Matmul<float, double>(call).run() : Matmul<float>(call).run();
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(matmul, {Op::matmul, checkMatmul, runMatmul})
