// matmul against a plain triple loop: shapes, transpositions, flags, dtypes, instruction sets, thread counts, refusals.
#include "backend/checks/matmul.h"
#include "test/kernels.h"

namespace meshwork::test {
namespace {

struct Shape {
  int64_t batch, m, n, k;
};

struct Setup {
  Shape shape;
  bool transposeA = false, transposeB = false;
  int32_t flags = 0;
  double alpha = 1;
  DType type = DType::f32, result = DType::f32, addend = DType::f32;
  int64_t padding = 0;
};

double activation(double x, int32_t flags) {
  if (flags & matmul_flag::gelu) return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
  if (flags & matmul_flag::silu) return x / (1 + std::exp(-x));
  return x;
}

// The operands of a product.
struct Product {
  Setup setup;
  Tensor a, b, bias, residual, d;

  explicit Product(const Setup& s)
      : setup(s),
        a(matrix(s.type, s.shape.batch, s.shape.m, s.shape.k, s.transposeA, s.padding)),
        b(matrix(s.type, s.shape.batch, s.shape.k, s.shape.n, s.transposeB, s.padding)),
        bias(s.addend, {s.shape.n}),
        residual(s.addend, {s.shape.batch, s.shape.m, s.shape.n}, s.shape.n + s.padding),
        d(s.result, {s.shape.batch, s.shape.m, s.shape.n}, s.shape.n + s.padding) {
    a.random(1);
    b.random(2);
    bias.random(3);
    residual.random(4);
  }

  static Tensor matrix(DType type, int64_t batch, int64_t rows, int64_t columns, bool transposed, int64_t padding) {
    if (!transposed) return Tensor(type, {batch, rows, columns}, columns + padding);
    Tensor t(type, {batch, columns, rows}, rows + padding);
    return t.transpose(1, 2);
  }

  Tensors inputs() {
    Tensors all = {&a, &b};
    if (setup.flags & matmul_flag::bias) all.push_back(&bias);
    if (setup.flags & matmul_flag::residual) all.push_back(&residual);
    return all;
  }
  Attributes attributes() const { return {{setup.flags, 0}, {setup.alpha}}; }

  static std::vector<double> values(const Tensor& t) {
    std::vector<double> all;
    for (int64_t i = 0; i < t.count(); ++i) all.push_back(t.get(i));
    return all;
  }

  // The results, and with each the largest number that came before it.
  struct Expected {
    double result, largest;
  };
  std::vector<Expected> expected() const {
    const auto [batch, m, n, k] = setup.shape;
    const std::vector<double> left = values(a), right = values(b);
    std::vector<Expected> result;
    for (int64_t i = 0; i < batch * m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < k; ++p) {
          sum += left[static_cast<size_t>(i * k + p)] * right[static_cast<size_t>((i / m * k + p) * n + j)];
        }
        sum *= setup.alpha;
        double largest = std::fabs(sum);
        const auto becomes = [&](double next) { largest = std::max(largest, std::fabs(sum = next)); };
        if (setup.flags & matmul_flag::bias) becomes(sum + bias.get(j));
        becomes(activation(sum, setup.flags));
        if (setup.flags & matmul_flag::residual) becomes(sum + residual.get(i * n + j));
        if (setup.flags & matmul_flag::accumulate) becomes(sum + d.get(i * n + j));
        result.push_back({sum, largest});
      }
    }
    return result;
  }
};

// Small float32 products sum in float64 and round once: their results are off by half a unit in the last place. What
// an epilogue adds is computed in float32, as by a kernel of its own.
bool isExact(const Setup& setup) {
  const auto [batch, m, n, k] = setup.shape;
  return setup.type == DType::f32 && k <= 4096 && batch * m * n * k <= 1 << 22;
}
double roundingOf(const Setup& setup, const Product::Expected& expected) {
  if (setup.result == DType::bf16) return std::fabs(expected.result) / 250;
  if (!isExact(setup)) return 0;
  return setup.flags == 0 ? std::fabs(expected.result) * 6.1e-8 : expected.largest * 4e-7;
}

void check(const Setup& setup) {
  Product product(setup);
  product.d.random(5);
  const std::vector<Product::Expected> expected = product.expected();
  const double exact = setup.type == DType::f64 ? 1e-13 : isExact(setup) ? 1e-14 : 4e-6;
  const double tolerance = exact * (1 + std::sqrt(static_cast<double>(setup.shape.k)));
  forEachIsa([&](Isa isa) {
    std::vector<std::byte> first;
    for (int threads = 1; threads <= 3; ++threads) {
      product.d.random(5);
      run(Op::matmul, isa, threads, product.inputs(), {&product.d}, product.attributes());
      if (threads > 1) {
        CHECK(product.d.bytes() == first);
        continue;
      }
      first = product.d.bytes();
      for (size_t i = 0; i < expected.size(); ++i) {
        const double allowed = tolerance + roundingOf(setup, expected[i]);
        CHECK_NEAR(product.d.get(static_cast<int64_t>(i)), expected[i].result, allowed);
      }
    }
  });
}

const Shape kShapes[] = {{1, 1, 1, 1},     {1, 13, 33, 17},  {2, 12, 32, 64},  {3, 7, 5, 9},
                         {1, 1, 300, 70},  {2, 2, 70, 33},   {1, 11, 130, 40}, {1, 25, 31, 400},
                         {1, 50, 65, 800}, {2, 130, 140, 6}, {1, 400, 3, 50},  {1, 5, 1, 37}};

TEST(matmul_shapes_and_transpositions) {
  for (const Shape& shape : kShapes) {
    for (int form = 0; form < 4; ++form) {
      check({.shape = shape, .transposeA = (form & 1) != 0, .transposeB = (form & 2) != 0, .padding = form * 3});
    }
  }
}

// Too large for sums in float64, each by one of the ways a product is computed.
const Shape kLargeShapes[] = {{1, 13, 33, 4100}, {2, 5, 37, 4099}, {1, 1, 300, 4098}, {3, 7, 5, 4097},
                              {1, 25, 31, 4300}, {1, 5, 1, 9000},  {1, 300, 290, 50}, {60, 100, 33, 24},
                              {1, 2, 70001, 31}, {1, 800, 3, 1800}};

TEST(matmul_large_shapes_and_transpositions) {
  for (const Shape& shape : kLargeShapes) {
    for (int form = 0; form < 4; ++form) {
      const Setup setup = {
          .shape = shape, .transposeA = (form & 1) != 0, .transposeB = (form & 2) != 0, .padding = form * 3};
      CHECK(!isExact(setup));
      check(setup);
    }
  }
}

TEST(matmul_f64) {
  for (const Shape& shape : kShapes) {
    for (int form = 0; form < 4; ++form) {
      check({.shape = shape,
             .transposeA = (form & 1) != 0,
             .transposeB = (form & 2) != 0,
             .flags = 31 & ~matmul_flag::silu,
             .alpha = 0.7,
             .type = DType::f64,
             .result = DType::f64,
             .addend = DType::f64});
    }
  }
}

TEST(matmul_bf16) {
  for (const Shape& shape : kShapes) {
    for (int form = 0; form < 16; ++form) {
      check({.shape = shape,
             .transposeA = (form & 1) != 0,
             .transposeB = (form & 2) != 0,
             .flags = 6,
             .type = DType::bf16,
             .result = form & 4 ? DType::bf16 : DType::f32,
             .addend = form & 8 ? DType::bf16 : DType::f32,
             .padding = 5});
    }
  }
}

TEST(matmul_flags) {
  for (int32_t flags = 0; flags < 32; ++flags) {
    if ((flags & matmul_flag::gelu) && (flags & matmul_flag::silu)) continue;
    check({.shape = {1, 14, 39, 20}, .flags = flags, .alpha = 1.5});
    check({.shape = {1, 3, 45, 500}, .transposeB = true, .flags = flags, .alpha = -0.5});
    check({.shape = {2, 30, 70, 500}, .flags = flags});
    check({.shape = {1, 1, 270, 1000}, .flags = flags});
    for (int form = 0; form < 4; ++form) {
      check({.shape = {2, 27, 50, 21},
             .transposeA = (form & 1) != 0,
             .transposeB = (form & 2) != 0,
             .flags = flags,
             .alpha = 0.8,
             .padding = 2});
    }
    check({.shape = {1, 3, 45, 4100}, .transposeB = true, .flags = flags, .alpha = -0.5});
    check({.shape = {1, 26, 70, 4100}, .flags = flags});
    check({.shape = {1, 1, 270, 4100}, .flags = flags});
  }
}

TEST(matmul_empty) {
  check({.shape = {0, 3, 4, 5}});
  check({.shape = {2, 0, 4, 5}});
  check({.shape = {2, 3, 0, 5}});
  for (int form = 0; form < 4; ++form) {  // no k: the addends alone
    check({.shape = {2, 3, 40, 0}, .transposeA = (form & 1) != 0, .transposeB = (form & 2) != 0, .flags = 14});
    check({.shape = {1, 30, 40, 0}, .transposeA = (form & 1) != 0, .transposeB = (form & 2) != 0});
  }
}

TEST(matmul_repeated_operands) {
  for (int64_t k : {30, 4200}) {
    Product product({.shape = {3, 20, 40, k}, .flags = 6});
    product.b.view().strides[0] = 0;
    product.residual.view().strides[1] = 0;
    product.bias.view().strides[0] = 0;
    const std::vector<Product::Expected> expected = product.expected();
    run(Op::matmul, targetIsa(), 2, product.inputs(), {&product.d}, product.attributes());
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK_NEAR(product.d.get(static_cast<int64_t>(i)), expected[i].result, k < 100 ? 1e-5 : 2e-4);
    }
  }
}

TEST(matmul_residual_may_be_the_result) {
  for (int64_t k : {600, 4200}) {
    Product product({.shape = {1, 20, 50, k}, .flags = 4});
    product.d.random(8);
    product.residual.random(8);
    const std::vector<Product::Expected> expected = product.expected();
    run(Op::matmul, targetIsa(), 2, {&product.a, &product.b, &product.d}, {&product.d}, product.attributes());
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK_NEAR(product.d.get(static_cast<int64_t>(i)), expected[i].result, 2e-4);
    }
  }
}

TEST(matmul_does_not_touch_the_padding) {
  for (int64_t k : {9, 4200}) {
    Product product({.shape = {2, 17, 37, k}, .padding = 11});
    run(Op::matmul, targetIsa(), 1, product.inputs(), {&product.d}, product.attributes());
    const double untouched = static_cast<double>(std::bit_cast<float>(0xababababu));
    product.d.view().dims[2] = 48;  // the pitch
    for (int64_t row = 0; row < 34; ++row) {
      for (int64_t j = 37; j < 48; ++j) CHECK_EQ(product.d.get(row * 48 + j), untouched);
    }
  }
}

bool refuses(Product& product, const std::string& word) {
  const Status status = test::check(Op::matmul, product.inputs(), {&product.d}, product.attributes());
  if (status.message().find(word) == std::string::npos) std::printf("  said: %s\n", status.message().c_str());
  return !status.ok() && status.message().find(word) != std::string::npos;
}

template <class Change>
void refusal(const char* word, const Change& change) {
  Product product({.shape = {2, 5, 6, 7}, .flags = 6});
  change(product);
  if (!refuses(product, word)) fail(__FILE__, __LINE__, std::string("accepted: ") + word);
}

TEST(matmul_refuses) {
  refusal("b[2, 8, 6]", [](Product& p) { p.b.view().dims[1] = 8; });
  refusal("a's batch", [](Product& p) { p.b.view().dims[0] = 3; });
  refusal("b's n", [](Product& p) { p.d.view().dims[2] = 5; });
  refusal("a's m", [](Product& p) { p.d.view().dims[1] = 4; });
  refusal("rank 2", [](Product& p) { p.a.view().rank = 2; });
  refusal("a has strides", [](Product& p) { p.a.view().strides[2] = 2; });
  refusal("b has strides", [](Product& p) { p.b.view().strides[2] = 2; });
  refusal("d has stride", [](Product& p) { p.d.transpose(1, 2).view().dims[1] = 5, p.d.view().dims[2] = 6; });
  refusal("d repeats", [](Product& p) { p.d.view().strides[0] = 0; });
  refusal("b is f64", [](Product& p) { p.b.view().dtype = DType::f64; });
  refusal("d is bf16", [](Product& p) { p.d.view().dtype = DType::bf16; });
  refusal("a is i32", [](Product& p) { p.a.view().dtype = DType::i32; });
  refusal("bias is bf16", [](Product& p) { p.bias.view().dtype = DType::bf16; });
  refusal("bias", [](Product& p) { p.bias.view().dims[0] = 5; });
  refusal("residual", [](Product& p) { p.residual.view().dims[1] = 4; });
  refusal("gelu and silu", [](Product& p) { p.setup.flags = 30; });
  refusal("unknown bits", [](Product& p) { p.setup.flags = 64 + 6; });
  Product product({.shape = {1, 2, 2, 2}});
  CHECK(!test::check(Op::matmul, {&product.a, &product.b, &product.bias}, {&product.d}, product.attributes()).ok());
  CHECK(!test::check(Op::matmul, {&product.a}, {&product.d}, product.attributes()).ok());
  CHECK(!test::check(Op::matmul, {&product.a, &product.b}, {&product.d}, {{0}, {1}}).ok());
  CHECK(test::check(Op::matmul, product.inputs(), {&product.d}, product.attributes()).ok());
}

}  // namespace
}  // namespace meshwork::test
