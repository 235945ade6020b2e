// Matrix products of bfloat16 by pairs: the processor multiplies two steps of k at a time (see pairs.h) and sums in
// float32. Sums over panels of k continue through memory, so that no blocking changes the bits.
#pragma once
#include "backend/cpu/kernels/matmul_call.h"
#include "backend/cpu/pairs.h"

#if MESHWORK_PAIRS
namespace meshwork::MESHWORK_ISA {

class PairMatmul : MatmulCall<bf16, float> {
 public:
  explicit PairMatmul(const Call& call) : MatmulCall(call) { plan(); }

  void run() {
    if (!empty()) forBlocks([this](const Block& block) { runBlock(block); });
  }

 private:
  void plan() {
    panels_ = std::max<int64_t>(1, ceilDiv(k_, pairs::kPanelK));
    panelK_ = roundUp(std::max<int64_t>(1, ceilDiv(k_, panels_)), pairs::kStep);
    panels_ = std::max<int64_t>(1, ceilDiv(k_, panelK_));
    blockRows_ = roundUp(ceilDiv(m_, ceilDiv(m_, pairs::kBlockRows)), pairs::kRows);
    const auto bytes = static_cast<int64_t>(call_.pool->workspaceBytes());
    const int64_t packed = (blockRows_ + pairs::kColumns) * panelK_ * 2;
    const int64_t room = (bytes - packed - pairs::kColumns * 8) / 4 - pairs::kRows * pairs::kColumns;
    // Sums wait in memory between panels of k: room for them bounds the columns.
    const int64_t most =
        panels_ == 1 ? n_ : std::max<int64_t>(1, room / blockRows_ / pairs::kColumns) * pairs::kColumns;
    blockColumns_ = roundUp(ceilDiv(n_, ceilDiv(n_, most)), pairs::kColumns);
    splitForThreads(4 * pairs::kRows, pairs::kRows, 4 * pairs::kColumns, pairs::kColumns);
  }

  void runBlock(const Block& at) const {
    const pairs::Unit unit;
    auto* packedLeft = reinterpret_cast<uint32_t*>(at.workspace);
    uint32_t* packedRight = packedLeft + blockRows_ * panelK_ / 2;
    auto* bias = reinterpret_cast<float*>(packedRight + pairs::kColumns * panelK_ / 2);
    float* sums = bias + pairs::kColumns;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t k0 = panel * panelK_, k = std::min(panelK_, k_ - k0);
      packLeft(at, k0, k, packedLeft);
      for (int64_t j = 0; j < at.columns; j += pairs::kColumns) {
        const int columns = static_cast<int>(std::min<int64_t>(pairs::kColumns, at.columns - j));
        pairs::packRight(right(at, k0, at.column + j), rightByRows_, rightStride_, columns, k, packedRight);
        if (panel == panels_ - 1) fillBias(at.column + j, columns, bias);
        multiply(at, panel, j, columns, k, packedLeft, packedRight, bias, panels_ == 1 ? sums : sums + j * blockRows_);
      }
    }
  }

  void packLeft(const Block& at, int64_t k0, int64_t k, uint32_t* to) const {
    const int64_t step = pairs::kRows * panelK_ / 2;
    for (int64_t i = 0; i < at.rows; i += pairs::kRows, to += step) {
      const int rows = static_cast<int>(std::min<int64_t>(pairs::kRows, at.rows - i));
      pairs::packLeft(left(at, at.row + i, k0), leftByRows_, leftStride_, rows, k, to);
    }
  }

  // One panel of k times one panel of columns, for all rows of the block. `tiles`: of pairs::kRows rows each, one after
  // the other (all in the same place when there is one panel of k).
  void multiply(const Block& at, int64_t panel, int64_t j, int columns, int64_t k, const uint32_t* packedLeft,
                const uint32_t* packedRight, const float* bias, float* tiles) const {
    const bool last = panel == panels_ - 1;
    const bool inPlace = last && plain_ && columns == pairs::kColumns;
    for (int64_t i = 0; i < at.rows; i += pairs::kRows) {
      const int rows = static_cast<int>(std::min<int64_t>(pairs::kRows, at.rows - i));
      float* tile = panels_ == 1 ? tiles : tiles + i * pairs::kColumns;
      const bool whole = inPlace && rows % pairs::kRowGrain == 0;
      auto* to = whole ? reinterpret_cast<float*>(element(call_.out[0], at.batch, at.row + i, at.column + j)) : tile;
      pairs::multiply(rows, columns, k, packedLeft + i * panelK_ / 2, packedRight, panel == 0 ? nullptr : tile, to,
                      whole ? call_.out[0].stride(1) : pairs::kColumns);
      if (last && !whole) finishRows(at, at.row + i, rows, at.column + j, columns, tile, pairs::kColumns, bias);
    }
  }

  int64_t panels_ = 1, panelK_ = 0;
};

}  // namespace meshwork::MESHWORK_ISA
#endif
