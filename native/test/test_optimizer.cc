// AdamW, SGD and square_sum against their formulas in float64.
#include <cmath>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

// The largest error allowed of a value built from numbers of this size.
double tolerance(DType dtype, double size) { return 8 * epsilonOf(dtype) * (std::fabs(size) + 1); }

struct State {
  State(DType dtype, int64_t n) : p(dtype, {n}), grad(dtype, {n}), m(dtype, {n}), v(dtype, {n}) {
    p.random(-1, 1, 1);
    grad.random(-2, 2, 2);
    m.random(-1, 1, 3);
    v.random(0, 1, 4);
  }
  Tensor p, grad, m, v;
};

Tensor scalar(DType dtype, double value) {
  Tensor t(dtype, {});
  t.set(0, value);
  return t;
}

void checkAdamwOn(DType dtype, int64_t n, int gateValue) {
  State s(dtype, n);
  const State old = s;
  Tensor lr = scalar(dtype, 0.01), c1 = scalar(dtype, 0.19), c2 = scalar(dtype, 0.02), scale = scalar(dtype, 0.5);
  Tensor gate(DType::i32, {1});
  gate.set(0, gateValue);
  const Instruct adamw(Op::adamw, {&s.p, &s.grad, &s.m, &s.v, &lr, &c1, &c2, &scale, &gate}, {&s.p, &s.m, &s.v},
                       {3, 2, 1, 0}, {0.1, 1e-8, 0.99, 0.9});
  adamw.runAll();
  for (int64_t i = 0; i < n; ++i) {
    double p = old.p.get(i), m = old.m.get(i), v = old.v.get(i);
    if (gateValue == 1) {
      const double g = old.grad.get(i) * scale.get(0);
      p *= 1 - lr.get(0) * 0.1;
      m += 0.1 * (g - m);
      v = 0.99 * v + 0.01 * g * g;
      p -= lr.get(0) / c1.get(0) * m / (std::sqrt(v / c2.get(0)) + 1e-8);
    }
    CHECK_NEAR(s.p.get(i), p, gateValue == 1 ? tolerance(dtype, p) : 0);
    CHECK_NEAR(s.m.get(i), m, gateValue == 1 ? tolerance(dtype, m) : 0);
    CHECK_NEAR(s.v.get(i), v, gateValue == 1 ? tolerance(dtype, v) : 0);
  }
}

TEST(adamw_updates) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const int64_t n : {0, 1, 19, 40000}) {
      checkAdamwOn(dtype, n, 1);
      checkAdamwOn(dtype, n, 0);
    }
  }
}

void checkSgdOn(DType dtype, int64_t n, bool nesterov) {
  State s(dtype, n);
  const State old = s;
  Tensor lr = scalar(dtype, 0.1), scale = scalar(dtype, 0.5), gate(DType::i32, {1});
  gate.set(0, 1);
  Instruct(Op::sgd, {&s.p, &s.grad, &s.m, &lr, &scale, &gate}, {&s.p, &s.m}, {0, 1, nesterov}, {0.9, 0.01}).runAll();
  for (int64_t i = 0; i < n; ++i) {
    const double g = old.grad.get(i) * 0.5 + 0.01 * old.p.get(i), buf = 0.9 * old.m.get(i) + g;
    CHECK_NEAR(s.p.get(i), old.p.get(i) - lr.get(0) * (nesterov ? g + 0.9 * buf : buf), tolerance(dtype, 2));
    CHECK_NEAR(s.m.get(i), buf, tolerance(dtype, buf));
  }
}

TEST(sgd_updates) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const int64_t n : {0, 1, 19, 40000}) {
      checkSgdOn(dtype, n, false);
      checkSgdOn(dtype, n, true);
    }
  }
}

TEST(square_sum_values) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const int64_t n : {0, 1, 15, 16, 17, 100003}) {
      Tensor x(dtype, {n}), y(dtype == DType::f64 ? DType::f64 : DType::f32, {1});
      x.random(-2, 2, 5);
      Instruct(Op::square_sum, {&x}, {&y}).runAll();
      double expected = 0;
      for (int64_t i = 0; i < n; ++i) expected += x.get(i) * x.get(i);
      CHECK_NEAR(y.get(0), expected, (epsilonOf(y.dtype()) + 1e-13) * expected);
    }
  }
}

TEST(optimizer_refuses) {
  State s(DType::f32, 8), wide(DType::f64, 8), longer(DType::f32, 9);
  Tensor one = scalar(DType::f32, 1), gate(DType::i32, {1}), two(DType::f32, {2}), apart(DType::f32, {8}, {2});
  const auto adamw = [&](Tensor* p, Tensor* grad, Tensor* lr, Tensor* last, Tensor* outP, std::vector<int32_t> attrs) {
    return Instruct(Op::adamw, {p, grad, &s.m, &s.v, lr, &one, &one, &one, last}, {outP, &s.m, &s.v}, std::move(attrs),
                    {1, 2});
  };
  CHECK(adamw(&s.p, &s.grad, &one, &gate, &s.p, {0, 1, 0, 1}).check().ok());
  CHECK_REFUSED(adamw(&wide.p, &s.grad, &one, &gate, &s.p, {0, 1, 0, 1}));
  CHECK_REFUSED(adamw(&s.p, &longer.grad, &one, &gate, &s.p, {0, 1, 0, 1}));
  CHECK_REFUSED(adamw(&s.p, &s.grad, &two, &gate, &s.p, {0, 1, 0, 1}));
  CHECK_REFUSED(adamw(&s.p, &s.grad, &one, &one, &s.p, {0, 1, 0, 1}));
  CHECK_REFUSED(adamw(&s.p, &s.grad, &one, &gate, &apart, {0, 1, 0, 1}));
  CHECK_REFUSED(adamw(&s.p, &s.grad, &one, &gate, &s.p, {0, 1, 2, 1}));
  CHECK_REFUSED(adamw(&s.p, &s.grad, &one, &gate, &s.p, {0, 1, 0}));
  CHECK_REFUSED(Instruct(Op::sgd, {&s.p, &s.grad, &s.m, &one, &one, &gate}, {&s.p, &s.m}, {0, 0, 2}, {1}));
  CHECK_REFUSED(Instruct(Op::sgd, {&s.p, &s.grad, &s.m, &one, &one, &gate}, {&s.p, &s.m}, {0, -1, 1}, {1}));
  CHECK_REFUSED(Instruct(Op::square_sum, {&s.p}, {&two}));
  CHECK_REFUSED(Instruct(Op::square_sum, {&apart}, {&one}));
  CHECK_REFUSED(Instruct(Op::square_sum, {&gate}, {&one}));
}

}  // namespace
}  // namespace meshwork::test
