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
  int64_t j = 0;
  for (; j + kLanes<A> <= n; j += kLanes<A>) store(sum + j, load(sum + j) + loadAs<A>(x + j));
  for (; j < n; ++j) sum[j] += static_cast<A>(widenOne(x[j]));
}

// Every block of columns goes through all ids in order, so that each sum is in ascending order for any thread count.
template <class T, class A>
void embeddingGrad(const Call& call) {
  const Operand &dy = call.in[0], &ids = call.in[1], &table = call.out[0];
  const int64_t start = call.tableAttr(attr::embedding_grad::start), rows = table.dim(0), width = table.dim(1);
  if (rows == 0 || width == 0) return;
  // Wide blocks touch fewer pages, narrow ones use more threads.
  const int64_t columns = std::clamp<int64_t>((width / 8 + 63) / 64 * 64, 64, 512);
  const int64_t rowBytes = width * static_cast<int64_t>(sizeof(A));
  const int64_t perTask = std::max<int64_t>(1, kTaskBytes / rowBytes);
  call.pool->run((rows + perTask - 1) / perTask, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * perTask);
    for (int64_t row = task * perTask; row < end; ++row) {
      std::memset(table.as<A>() + row * table.stride(0), 0, static_cast<size_t>(rowBytes));
    }
  });
  call.pool->run((width + columns - 1) / columns, [&](int64_t task, int) {
    const int64_t column = task * columns, n = std::min(columns, width - column);
    for (int64_t i = 0; i < dy.dim(0); ++i) {
      const int64_t row = rowOf(ids, i, start, rows);
      if (row >= 0) addTo(table.as<A>() + row * table.stride(0) + column, dy.as<T>() + i * dy.stride(0) + column, n);
    }
  });
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
