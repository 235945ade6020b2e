// Loops over the rows of a matrix, in tasks of about equal work: the same rows together for any number of threads.
#pragma once
#include <algorithm>

#include "backend/kernel.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {

// Calls f(row, thread) for every row of the first input, [rows, width].
template <class F>
void forEachRow(const Call& call, const F& f) {
  constexpr int64_t kTask = 16384;  // elements
  const int64_t rows = call.in[0].dim(0), width = std::max<int64_t>(1, call.in[0].dim(1));
  const int64_t perTask = std::max<int64_t>(1, kTask / width);
  call.pool->run((rows + perTask - 1) / perTask, [&](int64_t task, int thread) {
    const int64_t end = std::min(rows, (task + 1) * perTask);
    for (int64_t row = task * perTask; row < end; ++row) f(row, thread);
  });
}

// The first element of a row; of a list with one element for each row, that element.
template <class T>
T* rowOf(const Operand& operand, int64_t row) {
  return operand.as<T>() + row * operand.stride(0);
}

}  // namespace meshwork::MESHWORK_ISA
