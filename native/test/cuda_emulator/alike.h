// Emulated CUDA kernels beside the CPU's, on the same operands.
#pragma once
#include <cmath>

#include "backend/cpu/registry.h"
#include "runtime/pool.h"
#include "test/kernel_test.h"

namespace meshwork::test {

// Runs a call on both; the outputs hold the CPU's results afterwards. `terms` is the size of what an element is summed
// from, in units of rounding; 0 asks for the same numbers.
inline void checkAlike(const Instruct& call, double terms = 0) {
  std::vector<std::vector<std::byte>> before;
  for (const Tensor* t : call.out) before.push_back(t->bytes());
  call.runAll();
  std::vector<Tensor> emulated;
  for (Tensor* t : call.out) emulated.push_back(*t);
  for (size_t k = 0; k < call.out.size(); ++k) call.out[k]->setBytes(before[k]);
  Pool pool(1);
  call.runOn([&](Call c) {
    c.pool = &pool;
    findCpuKernel(call.op)->run(c);
  });
  for (size_t k = 0; k < call.out.size(); ++k) {
    const Tensor& t = *call.out[k];
    const double wide = t.dtype() == DType::f64 ? 2.3e-16 : 1.2e-7;
    for (int64_t i = 0; i < t.count(); ++i) {
      const double expected = t.get(i);
      CHECK_NEAR(emulated[k].get(i), expected,
                 terms == 0 ? 0 : 2 * epsilonOf(t.dtype()) * std::fabs(expected) + wide * terms);
    }
  }
}

}  // namespace meshwork::test
