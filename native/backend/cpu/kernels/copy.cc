// Copies between any two layouts of the same dims: whole ranges, rows, blocked transpositions, or element by element;
// and of the part of a tensor that is this device's shard.
#include "backend/checks/copy.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/kernel_list.h"
#include "backend/nest.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kTaskBytes = 131072;
constexpr int64_t kTile = 32;     // of a transposition
constexpr int64_t kSquare = 128;  // tiles are visited square by square, to stay on few pages

struct Copy {
  Nest<2> nest;  // 0 is y, so that y is written in memory order; 1 is x
  int64_t size;  // bytes of an element
  std::byte* y;
  const std::byte* x;
};

void copyRange(const Copy& copy, Pool& pool, int64_t bytes) {
  pool.run((bytes + kTaskBytes - 1) / kTaskBytes, [&](int64_t task, int) {
    const int64_t begin = task * kTaskBytes;
    std::memcpy(copy.y + begin, copy.x + begin, static_cast<size_t>(std::min(kTaskBytes, bytes - begin)));
  });
}

template <class T>
void copyRow(T* y, const T* x, int64_t yStride, int64_t xStride, int64_t n) {
  if (yStride == 1 && xStride == 1) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
  } else if (yStride == 1 && xStride == 0) {
    const T value = *x;
    for (int64_t i = 0; i < n; ++i) y[i] = value;
  } else if (yStride == 1) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i * xStride];
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * yStride] = x[i * xStride];
  }
}

template <class T>
void copyRows(const Copy& copy, Pool& pool) {
  const Nest<2>& nest = copy.nest;
  const int outer = nest.rank - 1;
  const int64_t length = nest.dims[outer], rows = nest.count(outer);
  // Tasks are runs of rows, or pieces of a very long one.
  const int64_t piece = std::min(length, kTaskBytes);
  const int64_t pieces = (length + piece - 1) / piece;
  const int64_t perTask = std::max<int64_t>(1, kTaskBytes / (piece * copy.size));
  const int64_t units = rows * pieces;
  const int64_t yStep = nest.strides[0][outer], xStep = nest.strides[1][outer];
  pool.run((units + perTask - 1) / perTask, [&](int64_t task, int) {
    const int64_t end = std::min(units, (task + 1) * perTask);
    for (int64_t unit = task * perTask; unit < end; ++unit) {
      const int64_t row = unit / pieces, begin = (unit % pieces) * piece;
      T* y = reinterpret_cast<T*>(copy.y) + nest.offset(0, row, outer) + begin * yStep;
      const T* x = reinterpret_cast<const T*>(copy.x) + nest.offset(1, row, outer) + begin * xStep;
      copyRow(y, x, yStep, xStep, std::min(piece, length - begin));
    }
  });
}

// y[i * yRow + j] = x[j * xColumn + i].
template <class T>
void copyTile(T* y, int64_t yRow, const T* x, int64_t xColumn, int64_t height, int64_t width) {
  T tile[kTile][kTile];
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = 0; i < height; ++i) tile[i][j] = x[j * xColumn + i];
  }
  for (int64_t i = 0; i < height; ++i) std::memcpy(y + i * yRow, tile[i], static_cast<size_t>(width) * sizeof(T));
}

// y is contiguous along the last loop, x along loop `other`: tiles of both, so that whole cache lines are used.
template <class T>
void transpose(Copy copy, Pool& pool, int other) {
  Nest<2>& nest = copy.nest;
  const int last = nest.rank - 1;
  // Loop `other` moves next to the last.
  const int64_t rows = nest.dims[other], yRow = nest.strides[0][other];
  for (int d = other; d + 1 < last; ++d) {
    nest.dims[d] = nest.dims[d + 1];
    for (int k = 0; k < 2; ++k) nest.strides[k][d] = nest.strides[k][d + 1];
  }
  const int outer = last - 1;
  const int64_t columns = nest.dims[last], xColumn = nest.strides[1][last];
  const int64_t rowTiles = (rows + kSquare - 1) / kSquare;
  pool.run(nest.count(outer) * rowTiles, [&](int64_t task, int) {
    const int64_t index = task / rowTiles, first = (task % rowTiles) * kSquare;
    T* y = reinterpret_cast<T*>(copy.y) + nest.offset(0, index, outer);
    const T* x = reinterpret_cast<const T*>(copy.x) + nest.offset(1, index, outer);
    for (int64_t square = 0; square < columns; square += kSquare) {
      for (int64_t row = first; row < std::min(rows, first + kSquare); row += kTile) {
        for (int64_t column = square; column < std::min(columns, square + kSquare); column += kTile) {
          copyTile(y + row * yRow + column, yRow, x + column * xColumn + row, xColumn, std::min(kTile, rows - row),
                   std::min(kTile, columns - column));
        }
      }
    }
  });
}

template <class T>
void copyElements(const Copy& copy, Pool& pool) {
  const Nest<2>& nest = copy.nest;
  const int last = nest.rank - 1;
  if (nest.strides[0][last] == 1 && nest.strides[1][last] > 1) {
    for (int d = 0; d < last; ++d) {
      if (nest.strides[1][d] == 1 && nest.dims[d] >= 8) return transpose<T>(copy, pool, d);
    }
  }
  copyRows<T>(copy, pool);
}

// Copies into y as many elements from x's memory, beginning at `from`, in x's layout.
void copyFrom(const Call& call, const std::byte* from) {
  const View &x = *call.in[0].view, &y = *call.out[0].view;
  const int64_t count = y.count();
  if (count == 0) return;
  Copy copy;
  copy.size = dtypeSize(y.dtype);
  copy.y = call.out[0].data;
  copy.x = from;
  for (int d = 0; d < y.rank; ++d) copy.nest.add(y.dims[d], {y.strides[d], x.strides[d]});
  copy.nest.join();
  const Nest<2>& nest = copy.nest;
  if (nest.rank == 0 || (nest.rank == 1 && nest.strides[0][0] == 1 && nest.strides[1][0] == 1)) {
    return copyRange(copy, *call.pool, count * copy.size);
  }
  switch (copy.size) {
    case 1:
      return copyElements<uint8_t>(copy, *call.pool);
    case 2:
      return copyElements<uint16_t>(copy, *call.pool);
    case 4:
      return copyElements<uint32_t>(copy, *call.pool);
    default:
      return copyElements<uint64_t>(copy, *call.pool);
  }
}

void runCopy(const Call& call) { copyFrom(call, call.in[0].data); }

void runShardSlice(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int dim = call.attrs[attr::shard_slice::dim];
  // The table is data: a start that does not fit is moved to where it does.
  const int64_t start = std::clamp<int64_t>(call.tableAttr(attr::shard_slice::start), 0, x.dim(dim) - y.dim(dim));
  copyFrom(call, x.data + start * x.stride(dim) * dtypeSize(x.view->dtype));
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(copy, {Op::copy, checkCopy, runCopy}, {Op::shard_slice, checkShardSlice, runShardSlice})
