// The f32 elementary functions: their error bounds over a dense sample of all floats, the same bits on every
// instruction set.
#include <bit>

#include "test/kernels.h"

namespace meshwork::test {
namespace {

struct Function {
  EOp op;
  double (*exact)(double);
  double ulps;
};

const Function kFunctions[] = {
    {EOp::exp_, [](double x) { return std::exp(x); }, 1.1},
    {EOp::log_, [](double x) { return std::log(x); }, 0.8},
    {EOp::tanh_, [](double x) { return std::tanh(x); }, 1.4},
    {EOp::erf_, [](double x) { return std::erf(x); }, 1.3},
    {EOp::sin_, [](double x) { return std::sin(x); }, 0.51},
    {EOp::cos_, [](double x) { return std::cos(x); }, 0.51},
    {EOp::sigmoid_, [](double x) { return 1 / (1 + std::exp(-x)); }, 2.5},
    {EOp::sqrt_, [](double x) { return std::sqrt(x); }, 0.51},
    {EOp::floor_, [](double x) { return std::floor(x); }, 0},
    {EOp::ceil_, [](double x) { return std::ceil(x); }, 0},
    {EOp::round_, [](double x) { return std::nearbyint(x); }, 0},
};

// |found - exact| in units of the last place of the float nearest to exact; 0 for the same infinity or two NaNs.
double ulpError(float found, double exact) {
  if (std::isnan(exact)) return std::isnan(found) ? 0 : INFINITY;
  const float rounded = static_cast<float>(exact);
  if (std::isinf(rounded) || std::isinf(found)) {
    // One step away from overflow either is right.
    return rounded == found || std::fabs(std::fabs(exact) / 3.4028235e38 - 1) < 1e-6 ? 0 : INFINITY;
  }
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::fabs(static_cast<double>(found) - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

// Every kStep-th float, and the ends of the special ranges.
Tensor sample() {
  constexpr int64_t kStep = 8191;
  const uint32_t special[] = {0,           0x80000000u, 1,           0x80000001u, 0x7f800000u,
                              0xff800000u, 0x7fc00000u, 0x7f7fffffu, 0xff7fffffu};
  const int64_t regular = (int64_t{1} << 32) / kStep;
  Tensor x(DType::f32, {regular + static_cast<int64_t>(std::size(special))});
  float* values = x.operand().as<float>();
  for (int64_t i = 0; i < regular; ++i) values[i] = std::bit_cast<float>(static_cast<uint32_t>(i * kStep));
  for (size_t i = 0; i < std::size(special); ++i)
    values[regular + static_cast<int64_t>(i)] = std::bit_cast<float>(special[i]);
  return x;
}

// How many values are not the same bits; one NaN is as good as another.
int64_t differences(const std::vector<float>& a, const float* b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    count += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  }
  return count;
}

TEST(simd_functions_keep_their_bounds) {
  Tensor x = sample();
  const float* from = x.operand().as<float>();
  for (const Function& function : kFunctions) {
    const Attributes attributes = {{1, static_cast<int32_t>(function.op), 0, 0, 0, 0, 1, 1}};
    std::vector<float> first;
    forEachIsa([&](Isa isa) {
      Tensor y(DType::f32, {x.count()});
      run(Op::elementwise, isa, 1, {&x}, {&y}, attributes);
      const float* found = y.operand().as<float>();
      if (!first.empty()) {
        CHECK_EQ(differences(first, found), 0);
        return;
      }
      first.assign(found, found + y.count());
      double worst = 0, at = 0;
      for (int64_t i = 0; i < x.count(); ++i) {
        const double error = ulpError(found[i], function.exact(static_cast<double>(from[i])));
        if (error > worst) worst = error, at = static_cast<double>(from[i]);
      }
      if (worst > function.ulps) {
        fail(__FILE__, __LINE__,
             "op " + std::to_string(static_cast<int>(function.op)) + comparison(" ulps at", worst, at));
      }
    });
  }
}

}  // namespace
}  // namespace meshwork::test
