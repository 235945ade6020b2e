// Rows of a table chosen by ids, and the sum of gradients back into them. Ids outside of the table are skipped.
#include "backend/checks/embedding.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/kernels/lanes.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kTaskBytes = 65536;

// The table's row for id i, or -1.
MESHWORK_INLINE int64_t rowOf(const Operand& ids, int64_t i, int64_t start, int64_t rows) {
  const int64_t row = static_cast<int64_t>(ids.as<int32_t>()[i * ids.stride(0)]) - start;
  return row >= 0 && row < rows ? row : -1;
}

void runEmbedding(const Call& call) {
  const Operand &table = call.in[0], &ids = call.in[1], &y = call.out[0];
  const int64_t start = call.tableAttr(attr::embedding::start), rows = table.dim(0), count = y.dim(0);
  const int64_t size = dtypeSize(y.view->dtype), bytes = y.dim(1) * size;
  if (bytes == 0) return;
  const int64_t perTask = std::max<int64_t>(1, kTaskBytes / bytes);
  call.pool->run((count + perTask - 1) / perTask, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * perTask);
    for (int64_t i = task * perTask; i < end; ++i) {
      const int64_t row = rowOf(ids, i, start, rows);
      std::byte* to = y.data + i * y.stride(0) * size;
      if (row >= 0) {
        std::memcpy(to, table.data + row * table.stride(0) * size, static_cast<size_t>(bytes));
      } else {
        std::memset(to, 0, static_cast<size_t>(bytes));
      }
    }
  });
}

template <class T, class A>
MESHWORK_INLINE void addTo(A* sum, const T* x, int64_t n) {
  forVectors<A>(n, [&](int64_t j, int m) { storeSome(sum + j, loadSome(sum + j, m) + loadSomeAs<A>(x + j, m), m); });
}

// Ids in ranges of the table's rows, stably sorted by range.
struct Ranges {
  static constexpr int64_t kMost = 256;
  static constexpr int64_t kIds = static_cast<int64_t>(Pool::kWorkspaceBytes / sizeof(int32_t));  // sorted at a time

  int64_t rows;              // of one range
  int64_t begin[kMost + 1];  // where the ids of a range begin in order
  int32_t* order;            // indices of ids, from the first sorted

  // Ids [first, first + count) that are in the table.
  void sort(const Operand& ids, int64_t first, int64_t count, int64_t start, int64_t tableRows) {
    std::memset(begin, 0, sizeof begin);
    const auto rangeOf = [&](int64_t i) {
      const int64_t row = rowOf(ids, first + i, start, tableRows);
      return row < 0 ? -1 : row / rows;
    };
    for (int64_t i = 0; i < count; ++i) {
      const int64_t range = rangeOf(i);
      if (range >= 0) ++begin[range + 1];
    }
    for (int64_t r = 0; r < kMost; ++r) begin[r + 1] += begin[r];
    int64_t next[kMost];
    std::memcpy(next, begin, sizeof next);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t range = rangeOf(i);
      if (range >= 0) order[next[range]++] = static_cast<int32_t>(i);
    }
  }
};

// A task has some of the table's rows and of its columns, and takes their ids in order: each sum is in ascending order
// for any number of threads.
template <class T, class A>
void embeddingGrad(const Call& call) {
  constexpr int64_t kColumns = 512;
  const Operand &dy = call.in[0], &ids = call.in[1], &table = call.out[0];
  const int64_t start = call.tableAttr(attr::embedding_grad::start), rows = table.dim(0), width = table.dim(1);
  if (rows == 0 || width == 0) return;
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  Ranges ranges;
  ranges.rows = (rows + Ranges::kMost - 1) / Ranges::kMost;
  ranges.order = reinterpret_cast<int32_t*>(call.pool->workspace(0));
  int64_t first = 0;
  do {
    const int64_t count = std::min(Ranges::kIds, dy.dim(0) - first);
    ranges.sort(ids, first, count, start, rows);
    call.pool->run((rows + ranges.rows - 1) / ranges.rows * blocks, [&](int64_t task, int) {
      const int64_t range = task / blocks, column = task % blocks * kColumns, n = std::min(kColumns, width - column);
      A* to = table.as<A>() + column;
      for (int64_t row = range * ranges.rows; first == 0 && row < std::min(rows, (range + 1) * ranges.rows); ++row) {
        std::memset(to + row * table.stride(0), 0, static_cast<size_t>(n) * sizeof(A));
      }
      for (int64_t k = ranges.begin[range]; k < ranges.begin[range + 1]; ++k) {
        const int64_t i = first + ranges.order[k], row = rowOf(ids, i, start, rows);
        addTo(to + row * table.stride(0), dy.as<T>() + i * dy.stride(0) + column, n);
      }
    });
    first += count;
  } while (first < dy.dim(0));
}

void runEmbeddingGrad(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return embeddingGrad<double, double>(call);
    case DType::bf16:
      return embeddingGrad<bf16, float>(call);
    case DType::f16:
      return embeddingGrad<f16, float>(call);
    default:
      return embeddingGrad<float, float>(call);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(embedding, {Op::embedding, checkEmbedding, runEmbedding},
                 {Op::embedding_grad, checkEmbeddingGrad, runEmbeddingGrad})
