// Blocks element by element where their dtypes differ, run by run where they do not.
#include "runtime/transfer.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace meshwork {
namespace {

double widen(float value) { return value; }
double widen(double value) { return value; }
double widen(bf16 value) { return toFloat(value); }
double widen(f16 value) {
  const double sign = (value.bits & 0x8000) != 0 ? -1 : 1;
  const int exponent = value.bits >> 10 & 0x1f, fraction = value.bits & 0x3ff;
  if (exponent == 0x1f) return fraction == 0 ? sign * HUGE_VAL : std::copysign(std::nan(""), sign);
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

void narrow(double value, double& to) { to = value; }
void narrow(double value, float& to) { to = static_cast<float>(value); }
void narrow(double value, bf16& to) { to = toBf16(static_cast<float>(value)); }
// Rounds to nearest, ties to even.
void narrow(double value, f16& to) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double size = std::fabs(value);
  if (std::isnan(value)) {
    to.bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (size >= 65520) {
    to.bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (size < 0x1p-14) {
    to.bits = static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24))));
  } else {
    const int exponent = std::ilogb(size);
    // A fraction that rounds up to 2048 carries into the exponent, as it should.
    const auto fraction = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    to.bits = static_cast<uint16_t>(sign | (((exponent + 15) << 10) + fraction - 1024));
  }
}

template <class From, class To>
void convertRun(const std::byte* from, std::byte* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    From value;
    To made;
    std::memcpy(&value, from + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    narrow(widen(value), made);
    std::memcpy(to + i * static_cast<int64_t>(sizeof(To)), &made, sizeof(To));
  }
}

using Convert = void (*)(const std::byte*, std::byte*, int64_t);

template <class From>
Convert conversionFrom(DType to) {
  constexpr std::array<Convert, 4> all = {convertRun<From, float>, convertRun<From, double>, convertRun<From, bf16>,
                                          convertRun<From, f16>};
  return all[static_cast<size_t>(to)];
}

Convert conversion(DType from, DType to) {
  switch (from) {
    case DType::f32:
      return conversionFrom<float>(to);
    case DType::f64:
      return conversionFrom<double>(to);
    case DType::bf16:
      return conversionFrom<bf16>(to);
    default:
      return conversionFrom<f16>(to);
  }
}

}  // namespace

Status checkConversion(DType from, DType to) {
  if (from == to || (isFloat(from) && isFloat(to))) return Status();
  return Status(Code::unsupported, std::string("elements of ") + dtypeName(from) + " do not become " + dtypeName(to));
}

Status CopyIn::extent(int64_t* sourceEnd, int64_t* targetEnd) const {
  const auto wrong = [] { return Status(Code::invalidArgument, "a block with a size or place that cannot be"); };
  if (source < 0 || target < 0 || run < 0) return wrong();
  *sourceEnd = *targetEnd = run;
  bool empty = run == 0, overflow = false;
  for (const Dim& dim : dims) {
    if (dim.count < 0 || dim.sourceStride < 0 || dim.targetStride < 0) return wrong();
    empty = empty || dim.count == 0;
    int64_t s = 0, t = 0;
    overflow = overflow || __builtin_mul_overflow(dim.count - 1, dim.sourceStride, &s) ||
               __builtin_mul_overflow(dim.count - 1, dim.targetStride, &t) ||
               __builtin_add_overflow(*sourceEnd, s, sourceEnd) || __builtin_add_overflow(*targetEnd, t, targetEnd);
  }
  if (empty) {
    *sourceEnd = *targetEnd = 0;
    return Status();
  }
  overflow = overflow || __builtin_mul_overflow(*sourceEnd, dtypeSize(from), sourceEnd) ||
             __builtin_add_overflow(*sourceEnd, source, sourceEnd) ||
             __builtin_add_overflow(*targetEnd, target, targetEnd) ||
             __builtin_mul_overflow(*targetEnd, dtypeSize(to), targetEnd);
  return overflow ? wrong() : Status();
}

uint64_t CopyIn::bytes() const {
  auto elements = static_cast<uint64_t>(run);
  for (const Dim& dim : dims) elements *= static_cast<uint64_t>(dim.count);
  return elements * static_cast<uint64_t>(dtypeSize(to));
}

void copyBlock(const CopyIn& block, const std::byte* memory, std::byte* image) {
  for (const CopyIn::Dim& dim : block.dims) {
    if (dim.count == 0) return;
  }
  const int64_t fromSize = dtypeSize(block.from), toSize = dtypeSize(block.to);
  const Convert convert = block.from == block.to ? nullptr : conversion(block.from, block.to);
  std::vector<int64_t> index(block.dims.size(), 0);
  const std::byte* from = memory + block.source;
  std::byte* to = image + block.target * toSize;
  for (;;) {
    if (convert != nullptr) {
      convert(from, to, block.run);
    } else if (block.run > 0) {
      std::memcpy(to, from, static_cast<size_t>(block.run * toSize));
    }
    size_t d = block.dims.size();
    for (; d > 0; --d) {
      const CopyIn::Dim& dim = block.dims[d - 1];
      from += dim.sourceStride * fromSize;
      to += dim.targetStride * toSize;
      if (++index[d - 1] < dim.count) break;
      from -= dim.count * dim.sourceStride * fromSize;
      to -= dim.count * dim.targetStride * toSize;
      index[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

}  // namespace meshwork
