// Routing to experts and their products: counts and ids that mean no harm, and those that do.
#include <climits>
#include <cmath>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

constexpr int64_t kRows = 9, kIn = 5, kOut = 7, kExperts = 3;

// The group of each row, -1 behind the last.
std::vector<int> groupsOf(const std::vector<int32_t>& counts) {
  std::vector<int> groups;
  for (size_t g = 0; g < counts.size(); ++g) {
    for (int32_t i = 0; i < counts[g] && static_cast<int64_t>(groups.size()) < kRows; ++i) {
      groups.push_back(static_cast<int>(g));
    }
  }
  groups.resize(kRows, -1);
  return groups;
}

void checkProducts(DType dtype, const std::vector<int32_t>& list, int32_t start) {
  Tensor x(dtype, {kRows, kIn}, {kIn + 3, 1}), w(dtype, {kExperts, kIn, kOut}), y(dtype, {kRows, kOut});
  Tensor counts(DType::i32, {static_cast<int64_t>(list.size())}), d(dtype, {kExperts, kIn, kOut});
  x.random(-1, 1, 1), w.random(-1, 1, 2);
  counts.fill([&](int64_t i) { return list[static_cast<size_t>(i)]; });
  Instruct(Op::grouped_matmul, {&x, &counts, &w}, {&y}, {0}, {}, {start}).runAll(false);
  Tensor dy(dtype, {kRows, kOut});
  dy.random(-1, 1, 3);
  Instruct(Op::grouped_matmul_grad, {&x, &dy, &counts}, {&d}, {0}, {}, {start}).runAll(false);
  const std::vector<int> groups = groupsOf(list);
  std::vector<double> sums(static_cast<size_t>(kExperts * kIn * kOut), 0);
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t g = groups[static_cast<size_t>(r)], e = g - start;
    const bool here = g >= 0 && e >= 0 && e < kExperts;
    for (int64_t n = 0; n < kOut; ++n) {
      double sum = 0;
      for (int64_t k = 0; here && k < kIn; ++k) {
        sum += x.get(r * kIn + k) * w.get((e * kIn + k) * kOut + n);
        sums[static_cast<size_t>((e * kIn + k) * kOut + n)] += x.get(r * kIn + k) * dy.get(r * kOut + n);
      }
      CHECK_NEAR(y.get(r * kOut + n), sum, 1e-12 + 10 * epsilonOf(dtype));
    }
  }
  for (int64_t i = 0; i < kExperts * kIn * kOut; ++i) {
    CHECK_NEAR(d.get(i), sums[static_cast<size_t>(i)], 1e-12 + 20 * epsilonOf(dtype));
  }
}

TEST(experts_products_of_any_counts) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    checkProducts(dtype, {3, 0, 6}, 0);
    checkProducts(dtype, {0, 0, 2}, 0);
    checkProducts(dtype, {1, 2, 1, 3, 1}, 1);
    checkProducts(dtype, {INT32_MAX, INT32_MAX, 4}, 0);
    checkProducts(dtype, {-5, 2, INT32_MIN, 100}, 0);
    checkProducts(dtype, {2, 2}, INT32_MAX);
    checkProducts(dtype, {2, 2}, INT32_MIN + 8);
    checkProducts(dtype, {}, 0);
  }
}

TEST(experts_sort_any_ids_and_come_back) {
  Tensor ids(DType::i32, {11}), order(DType::i32, {11}), place(DType::i32, {11}), counts(DType::i32, {3});
  const int32_t list[] = {2, 0, INT32_MAX, 1, 2, -1, 0, 3, INT32_MIN, 0, 2};
  const int32_t expected[] = {1, 6, 9, 3, 0, 4, 10, 2, 5, 7, 8};
  ids.fill([&](int64_t i) { return list[i]; });
  Instruct(Op::expert_sort, {&ids}, {&order, &place, &counts}).runAll();
  for (int64_t i = 0; i < 11; ++i) {
    CHECK_EQ(order.get(i), static_cast<double>(expected[i]));
    CHECK_EQ(place.get(static_cast<int64_t>(order.get(i))), static_cast<double>(i));
  }
  CHECK_EQ(counts.get(0), 3.0);
  CHECK_EQ(counts.get(1), 1.0);
  CHECK_EQ(counts.get(2), 3.0);
  Tensor x(DType::f32, {11, 1, 4}, {6, 0, 1}), there(DType::f32, {11, 4}), index(DType::i32, {11});
  x.random(-1, 1, 5);
  Instruct(Op::permute_rows, {&x, &order}, {&there}).runAll();
  for (int64_t i = 0; i < 44; ++i) CHECK_EQ(there.get(i), x.get(expected[i / 4] * 4 + i % 4));
  index.fill([](int64_t i) { return i % 2 ? static_cast<double>(INT32_MIN) : 11.0; });
  Instruct(Op::permute_rows, {&x, &index}, {&there}).runAll();
  for (int64_t i = 0; i < 44; ++i) CHECK_EQ(there.get(i), 0.0);
}

TEST(experts_capacity_takes_first_choices_first) {
  Tensor ids(DType::i32, {1, 3, 2}), kept(DType::i32, {1, 3, 2});
  const int32_t list[] = {1, 0, 0, 1, 0, 7};
  const int32_t expected[] = {1, -1, 0, 1, 0, -1};
  ids.fill([&](int64_t i) { return list[i]; });
  Instruct(Op::expert_capacity, {&ids}, {&kept}, {2, 2}).runAll();
  for (int64_t i = 0; i < 6; ++i) CHECK_EQ(kept.get(i), static_cast<double>(expected[i]));
}

TEST(experts_refuse) {
  Tensor x(DType::f32, {4, 3}), counts(DType::i32, {2}), w(DType::f32, {2, 3, 5}), y(DType::f32, {4, 5});
  Tensor floats(DType::f32, {2}), f64(DType::f64, {4, 5}), narrow(DType::f32, {2, 2, 5}),
      apart(DType::f32, {4, 3}, {8, 2});
  Tensor repeated(DType::f32, {4, 5}, {0, 1});
  const auto product = [](Tensor* a, Tensor* c, Tensor* b, Tensor* d, int32_t start) {
    return Instruct(Op::grouped_matmul, {a, c, b}, {d}, {start}, {}, {0});
  };
  CHECK(product(&x, &counts, &w, &y, 0).check().ok());
  CHECK_REFUSED(product(&x, &counts, &w, &y, 1));
  CHECK_REFUSED(product(&x, &floats, &w, &y, 0));
  CHECK_REFUSED(product(&x, &counts, &narrow, &y, 0));
  CHECK_REFUSED(product(&x, &counts, &w, &f64, 0));
  CHECK_REFUSED(product(&apart, &counts, &w, &y, 0));
  CHECK_REFUSED(product(&x, &counts, &w, &repeated, 0));
  Tensor ids(DType::i32, {1, 3, 2}), kept(DType::i32, {1, 3, 2});
  CHECK_REFUSED(Instruct(Op::expert_capacity, {&ids}, {&kept}, {1 << 20, 1}));
  CHECK_REFUSED(Instruct(Op::expert_capacity, {&ids}, {&kept}, {2, -1}));
  Tensor values(DType::f32, {4, 4}), indices(DType::i32, {4, 4});
  CHECK_REFUSED(Instruct(Op::topk, {&x}, {&values, &indices}));
  Tensor gate(DType::f32, {4, 3}), out(DType::f32, {4, 3});
  CHECK_REFUSED(Instruct(Op::expert_gate, {&x, &gate, &counts}, {&out}, {4}));
}

}  // namespace
}  // namespace meshwork::test
