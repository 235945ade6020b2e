// Routing to experts and the work on their rows: emulated CUDA kernels against the CPU's.
#include <cmath>

#include "backend/cpu/registry.h"
#include "runtime/pool.h"
#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16};

// Runs a call on both; `terms` is how many products an element is a sum of, 0 for the same bits.
void checkAlike(const Instruct& call, double terms = 0) {
  call.runAll();
  std::vector<Tensor> emulated;
  for (Tensor* t : call.out) emulated.push_back(*t);
  Pool pool(1);
  call.runOn([&](Call c) {
    c.pool = &pool;
    findCpuKernel(call.op)->run(c);
  });
  for (size_t k = 0; k < call.out.size(); ++k) {
    const Tensor& t = *call.out[k];
    const double eps = epsilonOf(t.dtype()), wide = t.dtype() == DType::f64 ? 2.3e-16 : 1.2e-7;
    for (int64_t i = 0; i < t.count(); ++i) {
      const double expected = t.get(i);
      CHECK_NEAR(emulated[k].get(i), expected, terms == 0 ? 0 : 2 * eps * std::fabs(expected) + wide * (8 + terms));
    }
  }
}

TEST(topk_as_the_cpu) {
  for (const DType dtype : kTypes) {
    for (const int64_t n : {1, 5, 64, 100}) {
      const int64_t k = std::min<int64_t>(n, 7);
      Tensor x(dtype, {9, n}, {n + 3, 1}), values(dtype, {9, k}), indices(DType::i32, {9, k}, {k + 1, 1});
      x.random(-4, 4, 3);
      x.fill([&](int64_t i) { return std::round(x.get(i)); });  // equal ones
      if (n > 5) {
        x.set(2 * n + 3, std::nan(""));
        x.set(2 * n + 1, std::nan(""));
        x.set(3 * n + 4, -INFINITY);
      }
      checkAlike({Op::topk, {&x}, {&values, &indices}});
    }
  }
}

TEST(capacity_and_order_as_the_cpu) {
  for (const int64_t tokens : {1, 17, 300}) {
    for (const int32_t experts : {1, 4, 40}) {
      Tensor ids(DType::i32, {3, tokens, 2}), kept(DType::i32, {3, tokens, 2});
      ids.fill([&](int64_t i) { return static_cast<double>(i * 7919 % (experts + 2) - 1); });
      for (const int32_t capacity : {0, 3, 1000}) {
        checkAlike({Op::expert_capacity, {&ids}, {&kept}, {experts, capacity}});
      }
      const int64_t n = 6 * tokens;
      Tensor flat(DType::i32, {n}), order(DType::i32, {n}), place(DType::i32, {n}), counts(DType::i32, {experts});
      flat.fill([&](int64_t i) { return ids.get(i); });
      checkAlike({Op::expert_sort, {&flat}, {&order, &place, &counts}});
    }
  }
}

TEST(permute_rows_as_the_cpu) {
  for (const DType dtype : kTypes) {
    for (const int64_t width : {1, 24, 3000}) {
      Tensor x(dtype, {5, 2, width}, {3 * width, width, 1}), index(DType::i32, {14}), y(dtype, {14, width});
      x.random(-1, 1, 1);
      index.fill([](int64_t i) { return static_cast<double>(i * 5 % 13 - 1); });
      checkAlike({Op::permute_rows, {&x, &index}, {&y}});
    }
  }
}

TEST(grouped_products_as_the_cpu) {
  for (const DType dtype : kTypes) {
    for (const bool transposed : {false, true}) {
      for (const int32_t start : {0, 2, -1}) {
        const int64_t rows = 170, depth = 37, columns = 70, experts = 3;
        Tensor x(dtype, {rows, depth}), counts(DType::i32, {5}), y(dtype, {rows, columns}, {columns + 2, 1});
        Tensor w(dtype, {experts, depth, columns},
                 transposed ? Dims{depth * columns, 1, depth} : Dims{depth * columns, columns, 1});
        Tensor dw(dtype, {experts, depth, columns}), dy(dtype, {rows, columns});
        const double sizes[] = {70, 0, 65, -3, 20};
        counts.fill([&](int64_t i) { return sizes[i]; });
        for (Tensor* t : {&x, &w, &dy}) t->random(-1, 1, 5);
        checkAlike({Op::grouped_matmul, {&x, &counts, &w}, {&y}, {0}, {}, {start}}, static_cast<double>(depth));
        checkAlike({Op::grouped_matmul_grad, {&x, &dy, &counts}, {&dw}, {0}, {}, {start}}, 70);
      }
    }
  }
}

TEST(gates_as_the_cpu) {
  for (const DType dtype : kTypes) {
    for (const int32_t act : {0, 1, 2, 3}) {
      for (const int64_t width : {5, 64, 2500}) {
        Tensor a(dtype, {9, width}), b(dtype, {9, width}), dy(dtype, {9, width}), y(dtype, {9, width}),
            da(dtype, {9, width}), db(dtype, {9, width}), counts(DType::i32, {3});
        counts.fill([](int64_t i) { return i == 1 ? -4 : 3; });
        for (Tensor* t : {&a, &b, &dy}) t->random(-4, 4, 8);
        checkAlike({Op::expert_gate, {&a, &b, &counts}, {&y}, {act}}, 60);
        checkAlike({Op::expert_gate_grad, {&a, &b, &counts, &dy}, {&da, &db}, {act}}, 200);
      }
    }
  }
}

TEST(choices_combined_as_the_cpu) {
  for (const DType dtype : kTypes) {
    for (const int64_t width : {1, 30, 700}) {
      Tensor x(dtype, {6, 3, width}, {4 * width, width, 1}), weights(dtype, {6, 3}), y(dtype, {6, width}),
          dy(dtype, {6, width}), dweights(dtype, {6, 3});
      for (Tensor* t : {&x, &weights, &dy}) t->random(-1, 1, 2);
      checkAlike({Op::expert_combine, {&x, &weights}, {&y}}, 3);
      checkAlike({Op::expert_combine_grad, {&x, &dy}, {&dweights}}, 20);
    }
  }
}

}  // namespace
}  // namespace meshwork::test
