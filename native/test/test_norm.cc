// Layer norm, RMS norm, softmax and their gradients against float64 formulas.
#include <cmath>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

DType statistics(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

struct Row {
  double mean, rstd;
};

Row statisticsOf(const Tensor& x, int64_t row, int64_t width, double eps, bool centred) {
  double mean = 0, squares = 0;
  for (int64_t j = 0; centred && j < width; ++j) mean += x.get(row * width + j) / static_cast<double>(width);
  for (int64_t j = 0; j < width; ++j) squares += std::pow(x.get(row * width + j) - mean, 2);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(width) + eps)};
}

struct Case {
  DType x, w;
  int64_t rows, width, pitch;
};

void checkNorm(const Case& c, bool centred) {
  const DType s = statistics(c.x);
  const double eps = 1e-5;
  Tensor x(c.x, {c.rows, c.width}, {c.pitch, 1}), w(c.w, {c.width}), b(c.w, {c.width}), y(c.x, {c.rows, c.width});
  Tensor mean(s, {c.rows}), rstd(s, {c.rows}, {3});
  x.random(-2, 5, 1);
  w.random(0.5, 2, 2);
  b.random(-1, 1, 3);
  Instruct norm(centred ? Op::layer_norm : Op::rms_norm, {&x, &w}, {&y}, {0}, {eps});
  if (centred) {
    norm.in.push_back(&b);
    norm.out.push_back(&mean);
  }
  norm.out.push_back(&rstd);
  norm.runAll();
  for (int64_t i = 0; i < y.count(); ++i) {
    const int64_t row = i / c.width, j = i % c.width;
    const Row r = statisticsOf(x, row, c.width, eps, centred);
    const double expected = (x.get(i) - r.mean) * r.rstd * w.get(j) + (centred ? b.get(j) : 0);
    CHECK_NEAR(y.get(i), expected, epsilonOf(c.x) * std::fabs(expected) + 10 * epsilonOf(s) * (1 + r.rstd));
    if (j == 0) CHECK_NEAR(rstd.get(row), r.rstd, 4 * epsilonOf(s) * r.rstd);
    if (j == 0 && centred) CHECK_NEAR(mean.get(row), r.mean, 4 * epsilonOf(s) * (1 + std::fabs(r.mean)));
  }
}

void checkNormGrad(const Case& c, bool centred) {
  const DType s = statistics(c.x);
  Tensor x(c.x, {c.rows, c.width}, {c.pitch, 1}), w(c.w, {c.width}), dy(c.x, {c.rows, c.width}),
      dx(c.x, {c.rows, c.width});
  Tensor mean(s, {c.rows}), rstd(s, {c.rows}), dw(s, {c.width}), db(s, {c.width});
  x.random(-2, 5, 1);
  w.random(0.5, 2, 2);
  dy.random(-1, 1, 3);
  for (int64_t i = 0; i < c.rows; ++i) {
    const Row r = statisticsOf(x, i, c.width, 1e-5, centred);
    mean.set(i, r.mean);
    rstd.set(i, r.rstd);
  }
  Instruct grad(centred ? Op::layer_norm_grad : Op::rms_norm_grad, {&dy, &x, &w}, {&dx, &dw});
  if (centred) {
    grad.in.push_back(&mean);
    grad.out.push_back(&db);
  }
  grad.in.push_back(&rstd);
  grad.runAll();
  std::vector<double> dws(static_cast<size_t>(c.width), 0), dbs(dws);
  for (int64_t row = 0; row < c.rows; ++row) {
    double g1 = 0, g2 = 0;
    const auto h = [&](int64_t j) {
      return (x.get(row * c.width + j) - (centred ? mean.get(row) : 0)) * rstd.get(row);
    };
    for (int64_t j = 0; j < c.width; ++j) {
      const double d = dy.get(row * c.width + j), g = d * w.get(j);
      g1 += centred ? g / static_cast<double>(c.width) : 0;
      g2 += g * h(j) / static_cast<double>(c.width);
      dws[static_cast<size_t>(j)] += d * h(j);
      dbs[static_cast<size_t>(j)] += d;
    }
    for (int64_t j = 0; j < c.width; ++j) {
      const double expected = rstd.get(row) * (dy.get(row * c.width + j) * w.get(j) - g1 - h(j) * g2);
      const double size = std::fabs(rstd.get(row)) * 8;
      CHECK_NEAR(dx.get(row * c.width + j), expected, epsilonOf(c.x) * std::fabs(expected) + 4 * epsilonOf(s) * size);
    }
  }
  for (int64_t j = 0; j < c.width; ++j) {
    const double rows = static_cast<double>(c.rows);
    CHECK_NEAR(dw.get(j), dws[static_cast<size_t>(j)],
               epsilonOf(s) * std::fabs(dws[static_cast<size_t>(j)]) + 1e-14 * rows);
    if (centred)
      CHECK_NEAR(db.get(j), dbs[static_cast<size_t>(j)],
                 epsilonOf(s) * std::fabs(dbs[static_cast<size_t>(j)]) + 1e-14 * rows);
  }
}

const Case kCases[] = {{DType::f32, DType::f32, 5, 77, 77},     {DType::f64, DType::f64, 5, 77, 80},
                       {DType::bf16, DType::f32, 5, 77, 90},    {DType::bf16, DType::bf16, 300, 48, 48},
                       {DType::f32, DType::f32, 400, 130, 130}, {DType::f32, DType::f32, 3, 1, 1},
                       {DType::f32, DType::f32, 0, 8, 8},       {DType::f32, DType::f32, 2, 3000, 3000},
                       {DType::f64, DType::f64, 1, 16, 16}};

TEST(layer_norm_and_grad) {
  for (const Case& c : kCases) {
    checkNorm(c, true);
    checkNormGrad(c, true);
  }
}

TEST(rms_norm_and_grad) {
  for (const Case& c : kCases) {
    checkNorm(c, false);
    checkNormGrad(c, false);
  }
}

TEST(norm_of_empty_rows) {
  Tensor x(DType::f32, {3, 0}), w(DType::f32, {0}), y(DType::f32, {3, 0}), mean(DType::f32, {3}), rstd(DType::f32, {3});
  Instruct(Op::layer_norm, {&x, &w, &w}, {&y, &mean, &rstd}, {0}, {0.25}).runAll();
  CHECK_EQ(rstd.get(2), 2.0);
  Instruct(Op::layer_norm_grad, {&y, &x, &w, &mean, &rstd}, {&y, &w, &w}).runAll();
}

TEST(norm_of_values_whose_squares_overflow) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Tensor x(dtype, {2, 70}), w(DType::f32, {70}), y(dtype, {2, 70}), mean(DType::f32, {2}), rstd(DType::f32, {2});
    x.fill([](int64_t i) { return i % 2 == 0 ? 0x1p100 : 0x1p102; });
    w.fill([](int64_t) { return 1; });
    if (dtype == DType::bf16) {
      Instruct(Op::rms_norm, {&x, &w}, {&y, &rstd}, {0}, {1e-5}).runAll();
      CHECK_NEAR(y.get(0), 1 / std::sqrt(8.5), 4e-3);
    } else {
      Instruct(Op::layer_norm, {&x, &w, &w}, {&y, &mean, &rstd}, {0}, {1e-5}).runAll();
      CHECK_NEAR(y.get(0), 0, 1e-6);
      CHECK_NEAR(y.get(1), 2, 1e-6);
    }
  }
}

TEST(softmax_and_grad) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const int64_t width : {1, 7, 16, 100, 5000}) {
      const int64_t rows = 6;
      Tensor x(dtype, {rows, width}, {width + 2, 1}), y(dtype, {rows, width}), dy(dtype, {rows, width}),
          dx(dtype, {rows, width});
      x.random(-9, 9, 1);
      dy.random(-1, 1, 2);
      Instruct(Op::softmax, {&x}, {&y}).runAll();
      Instruct(Op::softmax_grad, {&y, &dy}, {&dx}).runAll();
      const double eps = 30 * epsilonOf(statistics(dtype));
      for (int64_t row = 0; row < rows; ++row) {
        double sum = 0, dot = 0;
        for (int64_t j = 0; j < width; ++j) sum += std::exp(x.get(row * width + j));
        for (int64_t j = 0; j < width; ++j) dot += y.get(row * width + j) * dy.get(row * width + j);
        for (int64_t j = 0; j < width; ++j) {
          const int64_t i = row * width + j;
          const double p = std::exp(x.get(i)) / sum, d = y.get(i) * (dy.get(i) - dot);
          CHECK_NEAR(y.get(i), p, (eps + epsilonOf(dtype)) * p);
          CHECK_NEAR(dx.get(i), d, epsilonOf(dtype) * std::fabs(d) + eps * y.get(i));
        }
      }
    }
  }
  Tensor none(DType::f32, {0, 4}), flat(DType::f32, {4, 0});
  Instruct(Op::softmax, {&none}, {&none}).runAll();
  Instruct(Op::softmax, {&flat}, {&flat}).runAll();
}

TEST(softmax_in_place) {
  Tensor x(DType::f32, {3, 50}), y(DType::f32, {3, 50});
  x.random(-3, 3, 1);
  Instruct(Op::softmax, {&x}, {&y}).run();
  Instruct(Op::softmax, {&x}, {&x}).run();
  CHECK(x.bytes() == y.bytes());
}

TEST(norm_refuses) {
  Tensor x(DType::f32, {4, 3}), w(DType::f32, {3}), r(DType::f32, {4}), x64(DType::f64, {4, 3}), four(DType::f32, {4});
  Tensor apart(DType::f32, {4, 3}, {6, 2}), half(DType::bf16, {3}), sparse(DType::f32, {3}, {2}),
      wide(DType::f32, {1, 262145});
  Tensor same(DType::f32, {4, 3}, {0, 1}), wideW(DType::f32, {262145}), one(DType::f32, {1});
  const auto norm = [](Tensor* a, Tensor* weight, Tensor* bias, Tensor* out, Tensor* mean, int32_t eps) {
    return Instruct(Op::layer_norm, {a, weight, bias}, {out, mean, mean}, {eps}, {1e-5});
  };
  CHECK(norm(&x, &w, &w, &x, &r, 0).check().ok());
  CHECK_REFUSED(norm(&x, &w, &w, &x, &r, 1));
  CHECK_REFUSED(norm(&x, &w, &w, &x, &r, -1));
  CHECK_REFUSED(norm(&apart, &w, &w, &x, &r, 0));
  CHECK_REFUSED(norm(&x, &half, &half, &x, &r, 0));
  CHECK_REFUSED(norm(&x, &sparse, &w, &x, &r, 0));
  CHECK_REFUSED(norm(&x, &four, &w, &x, &r, 0));
  CHECK_REFUSED(norm(&x, &w, &w, &x64, &r, 0));
  CHECK_REFUSED(norm(&x, &w, &w, &same, &r, 0));
  CHECK_REFUSED(norm(&x, &w, &w, &x, &w, 0));
  CHECK_REFUSED(Instruct(Op::layer_norm_grad, {&x, &x, &w, &r, &r}, {&x, &w, &sparse}));
  CHECK_REFUSED(Instruct(Op::rms_norm_grad, {&x, &x, &w, &r}, {&x, &half}));
  CHECK_REFUSED(Instruct(Op::rms_norm_grad, {&wide, &wide, &wideW, &one}, {&wide, &wideW}));
  CHECK_REFUSED(Instruct(Op::softmax, {&x}, {&x64}));
  CHECK_REFUSED(Instruct(Op::softmax, {&apart}, {&x}));
  CHECK_REFUSED(Instruct(Op::softmax, {&w}, {&w}));
  CHECK_REFUSED(Instruct(Op::softmax_grad, {&x, &x64}, {&x}));
}

}  // namespace
}  // namespace meshwork::test
