// Routing to experts: the best few of a row, capacity, the stable order by expert, rows moved to it and back.
#include <algorithm>
#include <cstring>

#include "backend/checks/experts.h"
#include "backend/cpu/kernels/rows.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kTaskBytes = 65536;

// Whether a comes before b: larger, or not a number where b is one. Equal ones keep their order.
template <class A>
MESHWORK_INLINE bool before(A a, A b) {
  return a > b || (a != a && b == b);
}

template <class T>
void topk(const Call& call) {
  const Operand &x = call.in[0], &values = call.out[0], &indices = call.out[1];
  const int64_t rows = x.dim(0), n = x.dim(1), k = values.dim(1);
  if (k == 0) return;
  const int64_t perTask = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, n));
  call.pool->run((rows + perTask - 1) / perTask, [&](int64_t task, int) {
    for (int64_t r = task * perTask; r < std::min(rows, (task + 1) * perTask); ++r) {
      const T* from = x.as<T>() + r * x.stride(0);
      T* best = values.as<T>() + r * values.stride(0);
      int32_t* index = indices.as<int32_t>() + r * indices.stride(0);
      int64_t found = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto value = widenOne(from[i]);
        if (found == k && !before(value, widenOne(best[k - 1]))) continue;
        int64_t at = found < k ? found++ : k - 1;
        for (; at > 0 && before(value, widenOne(best[at - 1])); --at) {
          best[at] = best[at - 1];
          index[at] = index[at - 1];
        }
        best[at] = from[i];
        index[at] = static_cast<int32_t>(i);
      }
    }
  });
}

void runTopk(const Call& call) {
  switch (call.in[0].view->dtype) {
    case DType::f64:
      return topk<double>(call);
    case DType::bf16:
      return topk<bf16>(call);
    case DType::f16:
      return topk<f16>(call);
    default:
      return topk<float>(call);
  }
}

void runCapacity(const Call& call) {
  const Operand &ids = call.in[0], &kept = call.out[0];
  const int64_t tokens = ids.dim(1), choices = ids.dim(2);
  const int32_t experts = call.attrs[attr::expert_capacity::experts];
  const int32_t capacity = call.attrs[attr::expert_capacity::capacity];
  call.pool->run(ids.dim(0), [&](int64_t sample, int thread) {
    auto* taken = reinterpret_cast<int32_t*>(call.pool->workspace(thread));
    std::memset(taken, 0, static_cast<size_t>(experts) * sizeof(int32_t));
    const int32_t* from = ids.as<int32_t>() + sample * tokens * choices;
    int32_t* to = kept.as<int32_t>() + sample * tokens * choices;
    for (int64_t j = 0; j < choices; ++j) {
      for (int64_t t = 0; t < tokens; ++t) {
        const int32_t id = from[t * choices + j];
        const bool fits = id >= 0 && id < experts && taken[id] < capacity;
        if (fits) ++taken[id];
        to[t * choices + j] = fits ? id : -1;
      }
    }
  });
}

void runSort(const Call& call) {
  const int32_t* ids = call.in[0].as<int32_t>();
  int32_t *order = call.out[0].as<int32_t>(), *place = call.out[1].as<int32_t>(), *counts = call.out[2].as<int32_t>();
  const int64_t n = call.in[0].dim(0), experts = call.out[2].dim(0);
  const auto known = [&](int32_t id) { return id >= 0 && id < experts; };
  if (experts > 0) std::memset(counts, 0, static_cast<size_t>(experts) * sizeof(int32_t));
  for (int64_t i = 0; i < n; ++i) {
    if (known(ids[i])) ++counts[ids[i]];
  }
  int32_t next = 0;  // counts hold where each expert's rows begin, then where they end
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t count = counts[e];
    counts[e] = next;
    next += count;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t at = known(ids[i]) ? counts[ids[i]]++ : next++;
    order[at] = static_cast<int32_t>(i);
    place[i] = at;
  }
  for (int64_t e = experts - 1; e > 0; --e) counts[e] -= counts[e - 1];
}

void runPermute(const Call& call) {
  const Operand &x = call.in[0], &index = call.in[1], &y = call.out[0];
  const int64_t choices = x.dim(1), rows = x.dim(0) * choices, count = y.dim(0);
  const int64_t size = dtypeSize(y.view->dtype), bytes = y.dim(1) * size;
  if (bytes == 0) return;
  const int64_t perTask = std::max<int64_t>(1, kTaskBytes / bytes);
  call.pool->run((count + perTask - 1) / perTask, [&](int64_t task, int) {
    for (int64_t i = task * perTask; i < std::min(count, (task + 1) * perTask); ++i) {
      const int64_t row = index.as<int32_t>()[i];
      std::byte* to = y.data + i * y.stride(0) * size;
      if (row < 0 || row >= rows) {
        std::memset(to, 0, static_cast<size_t>(bytes));
        continue;
      }
      const int64_t at = row / choices * x.stride(0) + row % choices * x.stride(1);
      std::memcpy(to, x.data + at * size, static_cast<size_t>(bytes));
    }
  });
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(routing, {Op::topk, checkTopk, runTopk}, {Op::expert_capacity, checkExpertCapacity, runCapacity},
                 {Op::expert_sort, checkExpertSort, runSort}, {Op::permute_rows, checkPermuteRows, runPermute})
