// Matrix products: blocks of the result are computed one per task, from packed panels (see gemm.h), by ways chosen by
// shape and type alone. Every block sums over all of k by itself, so that thread counts change no bits.
#include "backend/cpu/kernels/matmul_call.h"
#include "backend/cpu/kernels/matmul_pairs.h"

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

template <class T, class S = Compute<T>>
class Matmul : MatmulCall<T, S> {
  using Base = MatmulCall<T, S>;
  using Base::blockColumns_, Base::blockRows_, Base::call_, Base::k_, Base::leftByRows_, Base::leftStride_, Base::m_;
  using Base::element, Base::fillBias, Base::finishRows, Base::left, Base::right;
  using Base::n_, Base::plain_, Base::rightByRows_, Base::rightStride_;

 public:
  explicit Matmul(const Call& call) : Base(call) {}

  void run() {
    if (this->empty()) return;
    if (!rightByRows_ && m_ <= (k_ >= kDotLeastK ? kDotRowsLimit : kDotFewRows)) {
      planDots();
      this->forBlocks([this](const Block& block) { runDots(block); });
      return;
    }
    planPanels();
    this->forBlocks([this](const Block& block) {
      if (wide_) {
        runPanels<kWideVectors>(block);
      } else {
        runPanels<kTileVectors>(block);
      }
    });
  }

 private:
  // ---- by panels ----

  void planPanels() {
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
    this->splitForThreads(4 * kTileRows, kTileRows, 4 * width, width);
  }

  // k of one panel where the right side is read in place: so many of its rows are read side by side, each from end to
  // end, which is what the processor's prefetching follows best.
  int64_t directK() const { return m_ <= 4 ? 8 : 16; }

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
      findMicroKernel<kVectors, S, B>(rows)(strip.k, strip.packedLeft + i * strip.k, right, ldRight,
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

  bool direct_ = false, wide_ = false;
  int64_t panels_ = 1, panelK_ = 0;
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

// Few rows are bound by memory: they gain nothing from products of pairs.
void runShort(const Call& call) {
#if MESHWORK_PAIRS
  if (call.in[0].dim(1) > kDirectRows) return PairMatmul(call).run();
#endif
  Matmul<bf16>(call).run();
}

void runMatmul(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return Matmul<double>(call).run();
    case DType::bf16:
      return runShort(call);
    case DType::f16:
      return Matmul<f16>(call).run();
    default:
      return sumsInDouble(call) ? Matmul<float, double>(call).run() : Matmul<float>(call).run();
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(matmul, {Op::matmul, checkMatmul, runMatmul})
