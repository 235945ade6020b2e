// The elementwise kernel: every operation against libm, layouts, dtypes, outputs, and words that must be refused.
#include <climits>
#include <cmath>
#include <limits>

#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

constexpr int32_t kF32 = 0, kF64 = 1, kI32 = 2;
const double kNan = std::nan("");
const double kInf = std::numeric_limits<double>::infinity();

struct Word {
  EOp op;
  int32_t type, a = 0, b = 0, c = 0;
};

Instruct expression(std::vector<Tensor*> in, std::vector<Tensor*> out, const std::vector<Word>& words,
                    const std::vector<int32_t>& outputs) {
  Instruct x{Op::elementwise, std::move(in), std::move(out), {static_cast<int32_t>(words.size())}};
  for (const Word& w : words) x.attrs.insert(x.attrs.end(), {static_cast<int32_t>(w.op), w.type, w.a, w.b, w.c});
  x.attrs.push_back(static_cast<int32_t>(outputs.size()));
  x.attrs.insert(x.attrs.end(), outputs.begin(), outputs.end());
  return x;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double x) { return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)); }
double geluSlope(double x) {
  const double s = sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x));
  return s + x * s * (1 - s) * 1.5957691216057308 * (1 + 3 * 0.044715 * x * x);
}
double siluSlope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

struct Unary {
  EOp op;
  double (*f)(double);
  double low, high, ulps;
};

const Unary kUnary[] = {
    {EOp::neg_, [](double x) { return -x; }, -9, 9, 0},
    {EOp::abs_, [](double x) { return std::fabs(x); }, -9, 9, 0},
    {EOp::sign_, [](double x) { return x > 0   ? 1.0
                                       : x < 0 ? -1.0
                                               : x; }, -9, 9, 0},
    {EOp::floor_, [](double x) { return std::floor(x); }, -9, 9, 0},
    {EOp::ceil_, [](double x) { return std::ceil(x); }, -9, 9, 0},
    {EOp::round_, [](double x) { return std::nearbyint(x); }, -9, 9, 0},
    {EOp::exp_, [](double x) { return std::exp(x); }, -80, 80, 4},
    {EOp::log_, [](double x) { return std::log(x); }, 1e-6, 100, 4},
    {EOp::sqrt_, [](double x) { return std::sqrt(x); }, 0, 100, 1},
    {EOp::rsqrt_, [](double x) { return 1 / std::sqrt(x); }, 1e-3, 100, 2},
    {EOp::reciprocal_, [](double x) { return 1 / x; }, 0.1, 100, 1},
    {EOp::sin_, [](double x) { return std::sin(x); }, -50, 50, 4},
    {EOp::cos_, [](double x) { return std::cos(x); }, -50, 50, 4},
    {EOp::tanh_, [](double x) { return std::tanh(x); }, -9, 9, 4},
    {EOp::erf_, [](double x) { return std::erf(x); }, -5, 5, 4},
    {EOp::sigmoid_, sigmoid, -30, 30, 6},
    {EOp::gelu_, gelu, -6, 6, 100},  // far out, the exponent multiplies the rounding of x^3
    {EOp::silu_, [](double x) { return x * sigmoid(x); }, -20, 20, 8},
};

void checkUnary(const Unary& u, DType dtype, int64_t n) {
  Tensor x(dtype, {n}), y(dtype, {n});
  x.random(u.low, u.high, 1);
  expression({&x}, {&y}, {{u.op, dtype == DType::f32 ? kF32 : kF64}}, {1}).runAll();
  for (int64_t i = 0; i < n; ++i) {
    const double expected = u.f(x.get(i));
    CHECK_NEAR(y.get(i), expected, u.ulps * epsilonOf(dtype) * std::fabs(expected) + 1e-37);
  }
}

TEST(elementwise_unary) {
  for (const Unary& u : kUnary) {
    for (const int64_t n : {1, 17, 1500}) {
      checkUnary(u, DType::f32, n);
      checkUnary(u, DType::f64, n);
    }
  }
}

TEST(elementwise_special_values) {
  const std::vector<double> special = {0.0,    -0.0,    kInf, -kInf, kNan, 1e-40, -1e-40,
                                       3.4e38, -3.4e38, 0.5,  1.5,   2.5,  -0.5,  -1.5};
  const int64_t n = static_cast<int64_t>(special.size());
  const EOp exact[] = {EOp::exp_, EOp::log_, EOp::tanh_, EOp::erf_, EOp::sqrt_, EOp::floor_, EOp::ceil_, EOp::round_};
  for (const EOp op : exact) {
    Tensor x(DType::f32, {n}), y(DType::f32, {n});
    x.fill([&](int64_t i) { return special[static_cast<size_t>(i)]; });
    expression({&x}, {&y}, {{op, kF32}}, {1}).runAll();
    for (const Unary& u : kUnary) {
      if (u.op != op) continue;
      for (int64_t i = 0; i < n; ++i) {
        const float expected = static_cast<float>(u.f(x.get(i)));
        CHECK_NEAR(y.get(i), expected, 5e-7 * std::fabs(expected) + 1e-44);
      }
    }
  }
  Tensor x(DType::f32, {n}), finite(DType::boolean, {n}), gelu(DType::f32, {n}), sin(DType::f32, {n});
  x.fill([&](int64_t i) { return special[static_cast<size_t>(i)]; });
  expression({&x}, {&finite, &sin}, {{EOp::is_finite_, kF32}, {EOp::sin_, kF32}}, {1, 2}).runAll();
  for (int64_t i = 0; i < n; ++i) {
    CHECK_EQ(finite.get(i), std::isfinite(x.get(i)) ? 1.0 : 0.0);
    CHECK_NEAR(sin.get(i), std::sin(x.get(i)), 1e-6);
  }
}

struct Binary {
  EOp op;
  double (*f)(double, double);
  double low, high, ulps;
  bool test;
};

const Binary kBinary[] = {
    {EOp::add_, [](double a, double b) { return a + b; }, -3, 3, 1, false},
    {EOp::sub_, [](double a, double b) { return a - b; }, -3, 3, 1, false},
    {EOp::mul_, [](double a, double b) { return a * b; }, -3, 3, 1, false},
    {EOp::div_, [](double a, double b) { return a / b; }, 0.5, 3, 1, false},
    {EOp::rem_, [](double a, double b) { return std::fmod(a, b); }, 0.5, 9, 1, false},
    {EOp::max_, [](double a, double b) { return std::fmax(a, b); }, -3, 3, 0, false},
    {EOp::min_, [](double a, double b) { return std::fmin(a, b); }, -3, 3, 0, false},
    {EOp::pow_, [](double a, double b) { return std::pow(a, b); }, 0.1, 4, 2, false},
    {EOp::gelu_grad_, [](double x, double dy) { return dy * geluSlope(x); }, -6, 6, 40, false},
    {EOp::silu_grad_, [](double x, double dy) { return dy * siluSlope(x); }, -9, 9, 40, false},
    {EOp::eq_, [](double a, double b) { return a == b ? 1.0 : 0.0; }, -2, 2, 0, true},
    {EOp::ne_, [](double a, double b) { return a != b ? 1.0 : 0.0; }, -2, 2, 0, true},
    {EOp::lt_, [](double a, double b) { return a < b ? 1.0 : 0.0; }, -2, 2, 0, true},
    {EOp::le_, [](double a, double b) { return a <= b ? 1.0 : 0.0; }, -2, 2, 0, true},
    {EOp::and_, [](double a, double b) { return a != 0 && b != 0 ? 1.0 : 0.0; }, -2, 2, 0, true},
    {EOp::or_, [](double a, double b) { return a != 0 || b != 0 ? 1.0 : 0.0; }, -2, 2, 0, true},
};

void checkBinary(const Binary& f, DType dtype, int64_t n) {
  const int32_t type = dtype == DType::f32 ? kF32 : dtype == DType::f64 ? kF64 : kI32;
  Tensor a(dtype, {n}), b(dtype, {n}), y(f.test ? DType::i32 : dtype, {n});
  a.random(f.low, f.high, 1);
  b.random(f.low, f.high, 2);
  if (f.test) {
    a.fill([&](int64_t i) { return std::round(a.get(i)); });
    b.fill([&](int64_t i) { return std::round(b.get(i)); });
  }
  expression({&a, &b}, {&y}, {{f.op, type, 0, 1}}, {2}).runAll();
  const double scale = f.op == EOp::gelu_grad_ || f.op == EOp::silu_grad_ ? f.high : 0;  // of what cancels
  for (int64_t i = 0; i < n; ++i) {
    const double expected = f.f(a.get(i), b.get(i));
    CHECK_NEAR(y.get(i), expected, f.ulps * epsilonOf(dtype) * (std::fabs(expected) + scale));
  }
}

TEST(elementwise_binary) {
  for (const Binary& f : kBinary) {
    for (const int64_t n : {3, 1100}) {
      checkBinary(f, DType::f32, n);
      checkBinary(f, DType::f64, n);
      if (f.test) checkBinary(f, DType::i32, n);
    }
  }
}

TEST(elementwise_nan_stays) {
  Tensor a(DType::f32, {20}), b(DType::f32, {20}), high(DType::f32, {20}), low(DType::f32, {20});
  a.fill([](int64_t i) { return i % 3 == 0 ? kNan : 1; });
  b.fill([](int64_t i) { return i % 3 == 1 ? kNan : 2; });
  expression({&a, &b}, {&high, &low}, {{EOp::max_, kF32, 0, 1}, {EOp::min_, kF32, 0, 1}}, {2, 3}).runAll();
  for (int64_t i = 0; i < 20; ++i) {
    CHECK_NEAR(high.get(i), i % 3 == 2 ? 2 : kNan, 0);
    CHECK_NEAR(low.get(i), i % 3 == 2 ? 1 : kNan, 0);
  }
}

TEST(elementwise_int) {
  const std::vector<int32_t> values = {0, 1, -1, 7, -7, INT32_MAX, INT32_MIN, 65536};
  const int64_t n = static_cast<int64_t>(values.size()), all = n * n;
  Tensor a(DType::i32, {all}), b(DType::i32, {all});
  a.fill([&](int64_t i) { return values[static_cast<size_t>(i / n)]; });
  b.fill([&](int64_t i) { return values[static_cast<size_t>(i % n)]; });
  const EOp ops[] = {EOp::add_, EOp::sub_, EOp::mul_, EOp::div_, EOp::rem_, EOp::max_, EOp::min_};
  for (const EOp op : ops) {
    Tensor y(DType::i32, {all});
    expression({&a, &b}, {&y}, {{op, kI32, 0, 1}}, {2}).runAll();
    for (int64_t i = 0; i < all; ++i) {
      const int64_t u = static_cast<int64_t>(a.get(i)), v = static_cast<int64_t>(b.get(i));
      const int64_t wide = op == EOp::add_   ? u + v
                           : op == EOp::sub_ ? u - v
                           : op == EOp::mul_ ? u * v
                           : op == EOp::div_ ? (v == 0 ? 0 : u / v)
                           : op == EOp::rem_ ? (v == 0 ? 0 : u % v)
                           : op == EOp::max_ ? std::max(u, v)
                                             : std::min(u, v);
      CHECK_EQ(y.get(i), static_cast<double>(static_cast<int32_t>(static_cast<uint64_t>(wide))));
    }
  }
  Tensor neg(DType::i32, {all}), abs(DType::i32, {all}), sign(DType::i32, {all}), no(DType::boolean, {all});
  expression({&a}, {&neg, &abs, &sign, &no},
             {{EOp::neg_, kI32}, {EOp::abs_, kI32}, {EOp::sign_, kI32}, {EOp::not_, kI32}}, {1, 2, 3, 4})
      .runAll();
  for (int64_t i = 0; i < all; ++i) {
    const double u = a.get(i);
    CHECK_EQ(neg.get(i), u == INT32_MIN ? u : -u);
    CHECK_EQ(abs.get(i), u == INT32_MIN ? u : std::fabs(u));
    CHECK_EQ(sign.get(i), u > 0 ? 1.0 : u < 0 ? -1.0 : 0.0);
    CHECK_EQ(no.get(i), u == 0 ? 1.0 : 0.0);
  }
}

TEST(elementwise_casts) {
  const std::vector<double> values = {0, 1.9, -1.9, 3e9, -3e9, kNan, kInf, -kInf, 2147483520.0, 0.001};
  const int64_t n = static_cast<int64_t>(values.size());
  for (const DType from : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i32, DType::boolean}) {
    Tensor x(from, {n});
    x.fill([&](int64_t i) {
      const double v = values[static_cast<size_t>(i)];
      return from == DType::i32 ? static_cast<double>(i * 1000 - 5) : v;
    });
    Tensor i32(DType::i32, {n}), f32(DType::f32, {n}), f64(DType::f64, {n}), bf(DType::bf16, {n}),
        flag(DType::boolean, {n});
    expression({&x}, {&i32, &f32, &f64, &bf, &flag}, {{EOp::cast_, kI32}, {EOp::cast_, kF32}, {EOp::cast_, kF64}},
               {1, 2, 3, 2, 2})
        .runAll();
    for (int64_t i = 0; i < n; ++i) {
      const double v = x.get(i);
      const double whole = std::isnan(v) ? 0 : std::trunc(std::fmin(std::fmax(v, INT32_MIN), INT32_MAX));
      CHECK_EQ(i32.get(i), whole);
      CHECK_NEAR(f32.get(i), static_cast<float>(v), 0);
      CHECK_NEAR(f64.get(i), v, 0);
      CHECK_NEAR(bf.get(i), toFloat(toBf16(static_cast<float>(v))), 0);
      CHECK_EQ(flag.get(i), static_cast<float>(v) != 0 ? 1.0 : 0.0);
    }
  }
}

float rounded(DType dtype, float x) { return dtype == DType::bf16 ? toFloat(toBf16(x)) : toFloat(toF16(x)); }

TEST(elementwise_cast_without_instructions) {
  for (const DType narrow : {DType::bf16, DType::f16}) {
    for (const int64_t n : {1, 31, 5000}) {
      Tensor x(DType::f32, {n}), y(narrow, {n}), z(DType::f32, {n}), r(DType::f32, {n});
      x.random(-5, 5, 3);
      expression({&x}, {&y}, {}, {0}).runAll();
      expression({&y}, {&z}, {}, {0}).runAll();
      expression({&x}, {&r}, {{EOp::round_to_, kF32, 0, static_cast<int32_t>(narrow)}}, {1}).runAll();
      for (int64_t i = 0; i < n; ++i) {
        const double expected = static_cast<double>(rounded(narrow, static_cast<float>(x.get(i))));
        CHECK_EQ(y.get(i), expected);
        CHECK_EQ(z.get(i), expected);
        CHECK_EQ(r.get(i), expected);
      }
    }
  }
}

// (a + b) * c - 2 where b and c repeat along some dims and y has any strides.
void checkLayout(const Dims& dims, const Dims& as, const Dims& bs, const Dims& cs, const Dims& ys, DType dtype) {
  Tensor a(dtype, dims, as), b(dtype, dims, bs), c(DType::f32, dims, cs), y(dtype, dims, ys);
  a.random(-2, 2, 1);
  b.random(-2, 2, 2);
  c.random(-2, 2, 3);
  Instruct x = expression(
      {&a, &b, &c}, {&y},
      {{EOp::add_, kF32, 0, 1}, {EOp::mul_, kF32, 3, 2}, {EOp::const_, kF32, 0}, {EOp::sub_, kF32, 4, 5}}, {6});
  x.floats = {2.0};
  x.runAll();
  for (int64_t i = 0; i < y.count(); ++i) {
    const float sum = static_cast<float>(a.get(i)) + static_cast<float>(b.get(i));
    const float expected = sum * static_cast<float>(c.get(i)) - 2.0f;
    CHECK_EQ(y.get(i), dtype == DType::bf16 ? toFloat(toBf16(expected)) : expected);
  }
}

TEST(elementwise_layouts) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    checkLayout({}, {}, {}, {}, {}, dtype);
    checkLayout({7}, {1}, {0}, {3}, {2}, dtype);
    checkLayout({5, 768}, {768, 1}, {0, 1}, {1, 0}, {768, 1}, dtype);
    checkLayout({300, 48}, {48, 1}, {0, 1}, {1, 0}, {48, 1}, dtype);
    checkLayout({37, 41}, {1, 37}, {41, 1}, {0, 0}, {50, 1}, dtype);
    checkLayout({37, 41}, {41, 1}, {1, 37}, {0, 1}, {1, 37}, dtype);
    checkLayout({3, 4, 5, 6}, {120, 30, 6, 1}, {6, 0, 0, 1}, {0, 5, 1, 0}, {1, 3, 12, 60}, dtype);
    checkLayout({2, 1, 2100}, {2100, 7, 1}, {0, 0, 1}, {1, 0, 0}, {2100, 2100, 1}, dtype);
    checkLayout({0}, {1}, {1}, {1}, {1}, dtype);
    checkLayout({4, 0, 3}, {0, 3, 1}, {0, 0, 1}, {0, 0, 0}, {0, 3, 1}, dtype);
    checkLayout({1, 700}, {0, 1}, {0, 1}, {700, 1}, {700, 1}, dtype);
  }
}

TEST(elementwise_iota_select) {
  Tensor y(DType::i32, {5, 300}), z(DType::f32, {5, 300}), t(DType::i32, {5, 300}, {1, 5});
  Instruct x = expression({}, {&y, &z, &t},
                          {{EOp::iota_, kI32, 0, 1},
                           {EOp::iota_, kI32, 1, -1},
                           {EOp::lt_, kI32, 0, 1},
                           {EOp::iota_, kF32, 1, 0},
                           {EOp::const_, kF32, 0},
                           {EOp::select_, kF32, 2, 3, 4}},
                          {0, 5, 1});
  x.floats = {-0.5};
  x.table = {100, 40};
  x.runAll();
  for (int64_t i = 0; i < y.count(); ++i) {
    const int64_t row = i / 300 + 40, column = i % 300;
    CHECK_EQ(y.get(i), static_cast<double>(row));
    CHECK_EQ(z.get(i), row < column ? static_cast<double>(column + 100) : -0.5);
    CHECK_EQ(t.get(i), static_cast<double>(column));
  }
}

TEST(elementwise_many_values) {
  // A long chain, whose buffers are reused, with an early result as an output.
  Tensor a(DType::f32, {3000}), b(DType::f32, {3000}), y(DType::f32, {3000}), early(DType::f32, {3000});
  a.random(-1, 1, 1);
  b.random(-1, 1, 2);
  std::vector<Word> words;
  for (int32_t k = 0; k < 200; ++k)
    words.push_back({k % 2 ? EOp::mul_ : EOp::add_, kF32, k < 3 ? 0 : k - 1, k % 2 ? 1 : k + 1});
  expression({&a, &b}, {&y, &early}, words, {201, 7}).runAll();
  for (int64_t i = 0; i < 3000; ++i) {
    std::vector<float> v = {static_cast<float>(a.get(i)), static_cast<float>(b.get(i))};
    for (const Word& w : words) {
      const float p = v[static_cast<size_t>(w.a)], q = v[static_cast<size_t>(w.b)];
      v.push_back(w.op == EOp::mul_ ? p * q : p + q);
    }
    CHECK_NEAR(y.get(i), v[201], 0);
    CHECK_NEAR(early.get(i), v[7], 0);
  }
}

TEST(elementwise_in_place) {
  Tensor x(DType::f32, {5000}), other(DType::f32, {5000}), before(DType::f32, {5000});
  x.random(-1, 1, 1);
  before.setBytes(x.bytes());
  // y0 is x's memory and is known before x is read for the last time.
  const Instruct in = expression({&x}, {&x, &other}, {{EOp::neg_, kF32, 0}, {EOp::mul_, kF32, 0, 0}}, {1, 2});
  CHECK(in.check().ok());
  in.run(targetIsa(), 2);
  for (int64_t i = 0; i < 5000; ++i) {
    CHECK_EQ(x.get(i), -before.get(i));
    CHECK_EQ(other.get(i), static_cast<float>(before.get(i)) * static_cast<float>(before.get(i)));
  }
}

TEST(elementwise_every_length) {
  // Whole groups and what is left of one, alone and with float64 beside (whose groups are half as long).
  for (const DType storage : {DType::f32, DType::bf16, DType::i32, DType::boolean}) {
    for (int64_t n = 1; n < 300; n += n < 140 ? 1 : 13) {
      Tensor x(storage, {n}), low(storage, {n}), wide(DType::f64, {n}), y(DType::f32, {n}), flag(DType::boolean, {n});
      x.fill([](int64_t i) { return static_cast<double>(i % 7 - 3); });
      low.fill([](int64_t i) { return static_cast<double>(i % 3); });
      const bool whole = storage == DType::i32 || storage == DType::boolean;
      const int32_t own = whole ? kI32 : kF32;
      const std::vector<Word> words = {{EOp::const_, own, 0},        {EOp::sub_, own, 2, 0}, {EOp::lt_, own, 3, 1},
                                       {EOp::select_, own, 4, 3, 1}, {EOp::cast_, kF32, 5},  {EOp::add_, own, 3, 2}};
      for (const bool withWide : {false, true}) {
        std::vector<Word> all = words;
        std::vector<Tensor*> out = {&y, &flag};
        std::vector<int32_t> values = {6, 4};
        if (withWide) {
          all.push_back({EOp::cast_, kF64, 7});
          out.push_back(&wide);
          values.push_back(8);
        }
        Instruct e = expression({&x, &low}, out, all, values);
        e.floats = {2.0};
        e.runAll();
        for (int64_t i = 0; i < n; ++i) {
          const double u = 2 - x.get(i), v = low.get(i);
          CHECK_EQ(y.get(i), u < v ? u : v);
          CHECK_EQ(flag.get(i), u < v ? 1.0 : 0.0);
          if (withWide) CHECK_EQ(wide.get(i), u + 2);
        }
      }
    }
  }
}

TEST(elementwise_outputs_that_are_inputs) {
  for (const int64_t n : {3, 128, 700}) {
    Tensor a(DType::f32, {n}), b(DType::f32, {n}), was(DType::f32, {n}), sum(DType::bf16, {n});
    a.random(-1, 1, 1);
    b.random(-1, 1, 2);
    was.setBytes(a.bytes());
    const Tensor& before = b;
    std::vector<double> old;
    for (int64_t i = 0; i < n; ++i) old.push_back(before.get(i));
    const Instruct e = expression({&a, &b}, {&b, &a, &sum}, {{EOp::add_, kF32, 0, 1}}, {0, 1, 2});  // exchanges them
    CHECK(e.check().ok());
    e.run(targetIsa(), 1);
    for (int64_t i = 0; i < n; ++i) {
      const double own = old[static_cast<size_t>(i)];
      CHECK_EQ(b.get(i), was.get(i));
      CHECK_EQ(a.get(i), own);
      CHECK_EQ(sum.get(i), toFloat(toBf16(static_cast<float>(own) + static_cast<float>(was.get(i)))));
    }
  }
}

TEST(elementwise_refuses) {
  Tensor a(DType::f32, {4}), b(DType::i32, {4}), y(DType::f32, {4}), repeated(DType::f32, {4}, {0});
  Tensor other(DType::f32, {5}), overlapping(DType::f32, {3, 4}, {2, 1}), wide(DType::f32, {3, 4}),
      f64(DType::f64, {4});
  const auto good = [&] { return expression({&a, &b}, {&y}, {{EOp::neg_, kF32, 0}}, {2}); };
  CHECK(good().check().ok());
  const auto bad = [&](const std::vector<Word>& words, const std::vector<int32_t>& outputs) {
    Instruct x = expression({&a, &b}, {&y}, words, outputs);
    x.floats = {1};
    x.table = {1, 2};
    CHECK_REFUSED(x);
  };
  bad({{EOp::neg_, kF32, 0}}, {3});
  bad({{EOp::neg_, kF32, 0}}, {-1});
  bad({{EOp::neg_, kF32, 2}}, {2});
  bad({{EOp::neg_, kF32, -1}}, {2});
  bad({{EOp::neg_, kF32, 1}}, {2});  // an i32 operand as f32
  bad({{EOp::neg_, kI32, 1}}, {2});  // an i32 result in an f32 output
  bad({{EOp::neg_, 3, 0}}, {2});
  bad({{EOp::neg_, -1, 0}}, {2});
  bad({{static_cast<EOp>(41), kF32, 0}}, {2});
  bad({{static_cast<EOp>(-1), kF32, 0}}, {2});
  bad({{EOp::const_, kF32, 1}}, {2});
  bad({{EOp::const_, kF32, -1}}, {2});
  bad({{EOp::iota_, kF32, 1, 0}}, {2});
  bad({{EOp::iota_, kF32, 0, 2}}, {2});
  bad({{EOp::iota_, kF32, 0, -2}}, {2});
  bad({{EOp::add_, kF32, 0, 7}}, {2});
  bad({{EOp::select_, kF32, 0, 0, 0}}, {2});  // a condition that is not i32
  bad({{EOp::select_, kF32, 1, 0, 9}}, {2});
  bad({{EOp::exp_, kI32, 1}, {EOp::cast_, kF32, 2}}, {3});
  bad({{EOp::round_to_, kF32, 0, 77}}, {2});
  bad(std::vector<Word>(300, {EOp::neg_, kF32, 0}), {2});
  CHECK_REFUSED(expression({&a, &other}, {&y}, {{EOp::neg_, kF32, 0}}, {2}));
  CHECK_REFUSED(expression({&a}, {&f64}, {{EOp::neg_, kF32, 0}}, {1}));
  CHECK_REFUSED(expression({&a}, {&repeated}, {{EOp::neg_, kF32, 0}}, {1}));
  CHECK_REFUSED(expression({&wide}, {&overlapping}, {{EOp::neg_, kF32, 0}}, {1}));
  CHECK_REFUSED(expression({&a}, {}, {{EOp::neg_, kF32, 0}}, {}));
  for (const int32_t count : {-1, 2, 1000000, INT32_MAX, INT32_MIN}) {
    Instruct x = good();
    x.attrs[0] = count;
    CHECK_REFUSED(x);
  }
  for (size_t words = 0; words < good().attrs.size(); ++words) {
    Instruct x = good();
    x.attrs.resize(words);
    CHECK_REFUSED(x);
  }
}

}  // namespace
}  // namespace meshwork::test
