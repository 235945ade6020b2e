// How an elementwise kernel walks its operands: collapsed dims, cut into blocks, and where each block lies.
#pragma once
#include <algorithm>

#include "backend/kernel.h"

namespace meshwork::MESHWORK_ISA {

inline void copyStrides(int64_t* to, const int64_t* from) {
  for (int d = 0; d < kMaxRank; ++d) to[d] = from[d];
}

struct Layout {
  int rank = 0;  // collapsed, at least 1
  int64_t dims[kMaxRank] = {};
  int64_t rows = 1;       // product of all dims but the last
  int64_t rowLength = 1;  // the last
  int64_t piece = 1;      // elements of a row in one block
  int64_t pieces = 1;     // blocks per row; 1 when a block holds whole rows
  int64_t rowsPerBlock = 1;
  int64_t blocks = 0;

  int64_t perBlock() const { return rowsPerBlock * piece; }
  int64_t lastStride(const int64_t* strides) const { return strides[rank - 1]; }

  // Drops dims of size 1, orders the others by the first output's strides (falling), and joins neighbours that lie in
  // every operand as one dim would. forEachStrides(f) calls f with the strides of every operand, to be read and
  // written.
  template <class Each>
  void collapse(const View& view, const Each& forEachStrides) {
    int order[kMaxRank], kept = 0;
    for (int d = 0; d < view.rank; ++d) {
      if (view.dims[d] == 1) continue;
      int at = kept++;
      for (; at > 0 && view.strides[order[at - 1]] < view.strides[d]; --at) order[at] = order[at - 1];
      order[at] = d;
    }
    for (int d = 0; d < kept; ++d) dims[d] = view.dims[order[d]];
    forEachStrides([&](int64_t* strides) {
      int64_t old[kMaxRank];
      copyStrides(old, strides);
      for (int d = 0; d < kMaxRank; ++d) strides[d] = d < kept ? old[order[d]] : 0;
    });
    int last = 0;
    for (int d = 1; d < kept; ++d) {
      bool joins = true;
      forEachStrides([&](int64_t* strides) { joins &= strides[last] == strides[d] * dims[d]; });
      const int to = joins ? last : ++last;
      dims[to] = joins ? dims[last] * dims[d] : dims[d];
      forEachStrides([&](int64_t* strides) { strides[to] = strides[d]; });
    }
    rank = kept == 0 ? 1 : last + 1;
    if (kept == 0) dims[0] = 1;
    rowLength = dims[rank - 1];
    for (int d = 0; d + 1 < rank; ++d) rows *= dims[d];
  }

  // Blocks of at most so many elements, a multiple of 64: whole rows, or pieces of one.
  void cutBlocks(int64_t capacity) {
    if (rowLength * 2 > capacity) {
      pieces = (rowLength + capacity - 1) / capacity;
      piece = ((rowLength + pieces - 1) / pieces + 63) / 64 * 64;
      pieces = (rowLength + piece - 1) / piece;
      blocks = rows * pieces;
    } else {
      piece = rowLength;
      rowsPerBlock = std::min(rows, capacity / rowLength);
      blocks = (rows + rowsPerBlock - 1) / rowsPerBlock;
    }
  }

  bool isLinear(const int64_t* strides) const {
    int64_t expected = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (dims[d] != 1 && strides[d] != expected) return false;
      expected *= dims[d];
    }
    return true;
  }
  bool isSameForRows(const int64_t* strides) const {
    for (int d = 0; d + 1 < rank; ++d) {
      if (strides[d] != 0) return false;
    }
    return true;
  }
};

// Where a block starts, and its size.
struct Place {
  int64_t index[kMaxRank] = {};
  int64_t row = 0, rows = 1, column = 0, length = 1;  // length: elements of one row

  int64_t count() const { return rows * length; }
  int64_t linear(const Layout& layout) const { return row * layout.rowLength + column; }
  int64_t offset(const Layout& layout, const int64_t* strides) const {
    int64_t at = column * layout.lastStride(strides);
    for (int d = 0; d + 1 < layout.rank; ++d) at += index[d] * strides[d];
    return at;
  }
  void nextRow(const Layout& layout) {
    for (int d = layout.rank - 2; d >= 0; --d) {
      if (++index[d] < layout.dims[d]) return;
      index[d] = 0;
    }
  }
};

inline Place placeOf(const Layout& layout, int64_t block) {
  Place place;
  if (layout.pieces > 1) {
    place.row = block / layout.pieces;
    place.column = (block % layout.pieces) * layout.piece;
    place.length = std::min(layout.piece, layout.rowLength - place.column);
  } else {
    place.row = block * layout.rowsPerBlock;
    place.rows = std::min(layout.rowsPerBlock, layout.rows - place.row);
    place.length = layout.rowLength;
  }
  int64_t rest = place.row;
  for (int d = layout.rank - 2; d >= 0; --d) {
    place.index[d] = rest % layout.dims[d];
    rest /= layout.dims[d];
  }
  return place;
}

}  // namespace meshwork::MESHWORK_ISA
