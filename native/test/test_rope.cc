// rope against its definition: dtypes, strides, long heads, positions, inverse, refusals.
#include "test/kernels.h"

namespace meshwork::test {
namespace {

struct Setup {
  int64_t batch = 1, length = 1, heads = 1, features = 2;
  DType type = DType::f32, frequencyType = DType::f32;
  bool headsFirst = false, sharedPositions = false, inverse = false;
};

Tensor headsTensor(const Setup& s) {
  if (!s.headsFirst) return Tensor(s.type, {s.batch, s.length, s.heads, s.features}, s.features + 5);
  Tensor t(s.type, {s.batch, s.heads, s.length, s.features});
  return t.transpose(1, 2);
}

struct Problem {
  Setup s;
  Tensor x, y, positions, frequencies;

  explicit Problem(const Setup& setup)
      : s(setup),
        x(headsTensor(s)),
        y(headsTensor(s)),
        positions(DType::i32, {s.batch, s.length}),
        frequencies(s.frequencyType, {s.features / 2}) {
    x.random(1);
    positions.fill([&](int64_t i) { return static_cast<double>(i * 37 % 5000 - 10); });
    frequencies.fill(
        [&](int64_t i) { return std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(s.features)); });
    if (s.sharedPositions) positions.view().strides[0] = 0;
  }
  Attributes attributes() const { return {{s.inverse ? 1 : 0}}; }

  double expected(int64_t index) const {
    const int64_t half = s.features / 2, i = index % s.features, row = index / s.features;
    const double frequency = frequencies.get(i % half), position = positions.get(row / s.heads);
    const double angle = s.type == DType::f64
                             ? position * frequency
                             : static_cast<double>(static_cast<float>(position) * static_cast<float>(frequency));
    const double sine = s.inverse ? -std::sin(angle) : std::sin(angle);
    const double partner = x.get(i < half ? index + half : index - half);
    return x.get(index) * std::cos(angle) + (i < half ? -partner : partner) * sine;
  }
};

void check(const Setup& setup) {
  Problem p(setup);
  const double tolerance = setup.type == DType::f64 ? 1e-15 : setup.type == DType::bf16 ? 8e-3 : 3e-7;
  forEachIsa([&](Isa isa) {
    std::vector<std::byte> first;
    for (int threads = 1; threads <= 3; ++threads) {
      p.y.fill([](int64_t) { return 9.0; });
      run(Op::rope, isa, threads, {&p.x, &p.positions, &p.frequencies}, {&p.y}, p.attributes());
      if (threads == 1) first = p.y.bytes();
      CHECK(p.y.bytes() == first);
    }
    for (int64_t i = 0; i < p.y.count(); ++i) CHECK_NEAR(p.y.get(i), p.expected(i), tolerance);
  });
}

TEST(rope_values) {
  check({});
  check({.batch = 2, .length = 40, .heads = 3, .features = 64});
  check({.batch = 3, .length = 7, .heads = 2, .features = 22, .headsFirst = true, .sharedPositions = true});
  check({.length = 5, .heads = 2, .features = 1100, .frequencyType = DType::f64});
  check({.batch = 2, .length = 9, .heads = 2, .features = 34, .inverse = true});
  check({.batch = 2, .length = 9, .heads = 2, .features = 34, .type = DType::f64, .frequencyType = DType::f64});
  check({.batch = 2, .length = 9, .heads = 2, .features = 34, .type = DType::bf16, .inverse = true});
}

TEST(rope_empty) {
  check({.batch = 0, .length = 3});
  check({.length = 0});
  check({.heads = 0});
  check({.features = 0});
}

TEST(rope_in_place_and_back) {
  Problem p({.batch = 1, .length = 30, .heads = 2, .features = 48});
  std::vector<double> before;
  for (int64_t i = 0; i < p.x.count(); ++i) before.push_back(p.x.get(i));
  run(Op::rope, targetIsa(), 2, {&p.x, &p.positions, &p.frequencies}, {&p.x}, {{0}});
  run(Op::rope, targetIsa(), 2, {&p.x, &p.positions, &p.frequencies}, {&p.x}, {{1}});
  for (int64_t i = 0; i < p.x.count(); ++i) CHECK_NEAR(p.x.get(i), before[static_cast<size_t>(i)], 5e-7);
}

template <class Change>
void refusal(const char* word, const Change& change) {
  Problem p({.batch = 2, .length = 3, .heads = 2, .features = 6});
  Attributes attributes = p.attributes();
  change(p, attributes);
  const Status status = test::check(Op::rope, {&p.x, &p.positions, &p.frequencies}, {&p.y}, attributes);
  if (status.ok() || status.message().find(word) == std::string::npos) {
    fail(__FILE__, __LINE__, std::string(word) + ": " + status.message());
  }
}

TEST(rope_refuses) {
  refusal("odd", [](Problem& p, Attributes&) { p.x.view().dims[3] = p.y.view().dims[3] = 5; });
  refusal("same dims", [](Problem& p, Attributes&) { p.y.view().dims[1] = 2; });
  refusal("x's length", [](Problem& p, Attributes&) { p.positions.view().dims[1] = 2; });
  refusal("half of", [](Problem& p, Attributes&) { p.frequencies.view().dims[0] = 2; });
  refusal("positions is f32", [](Problem& p, Attributes&) { p.positions.view().dtype = DType::f32; });
  refusal("inv_freq is i32", [](Problem& p, Attributes&) { p.frequencies.view().dtype = DType::i32; });
  refusal("y is bf16", [](Problem& p, Attributes&) { p.y.view().dtype = DType::bf16; });
  refusal("stride", [](Problem& p, Attributes&) { p.x.view().strides[3] = 2; });
  refusal("inverse", [](Problem&, Attributes& a) { a.words[0] = 2; });
  refusal("attribute", [](Problem&, Attributes& a) { a.words.push_back(0); });
}

}  // namespace
}  // namespace meshwork::test
