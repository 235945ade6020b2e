// One pass over memory: a cache line of every source is added up in registers and written to every output. Vectors of
// 16 bytes, which every 64-bit processor has: memory is the bound.
#include "collective/combine.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshwork {
namespace {

using F32x4 = float __attribute__((vector_size(16)));
using F64x2 = double __attribute__((vector_size(16)));
using I32x4 = int32_t __attribute__((vector_size(16)));
using U32x4 = uint32_t __attribute__((vector_size(16)));
using U16x8 = uint16_t __attribute__((vector_size(16)));

constexpr int64_t kLineBytes = 64;
constexpr int kVectors = 4;  // of 16 bytes in a line

template <class V>
inline V loadVector(const std::byte* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <bool stream, class V>
inline void storeVector(std::byte* to, V v) {
#if defined(__x86_64__)
  if constexpr (stream) {
    __m128i bits;
    std::memcpy(&bits, &v, sizeof bits);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits);
    return;
  }
#endif
  std::memcpy(to, &v, sizeof v);
}

// Makes streamed stores visible before what comes next.
inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// a (op) b, of vectors and of numbers. A NaN on either side stays one.
template <Reduction kind, class V>
inline V combined(V a, V b) {
  if constexpr (kind == Reduction::sum && std::is_same_v<V, I32x4>) {
    return reinterpret_cast<I32x4>(reinterpret_cast<U32x4>(a) + reinterpret_cast<U32x4>(b));  // wraps around
  } else if constexpr (kind == Reduction::sum && std::is_same_v<V, int32_t>) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  } else if constexpr (kind == Reduction::sum) {
    return a + b;
  } else if constexpr (kind == Reduction::max) {
    return ((a > b) | (a != a)) ? a : b;
  } else {
    return ((a < b) | (a != a)) ? a : b;
  }
}

// A cache line of elements in registers, and one element. bf16 and f16 are widened to f32.
template <class Number, class Vector>
struct PlainLine {
  using Element = Number;
  using Scalar = Number;
  Vector v[kVectors];

  void load(const std::byte* from) {
    for (int i = 0; i < kVectors; ++i) v[i] = loadVector<Vector>(from + 16 * i);
  }
  template <Reduction kind>
  void add(const std::byte* from) {
    for (int i = 0; i < kVectors; ++i) v[i] = combined<kind>(v[i], loadVector<Vector>(from + 16 * i));
  }
  template <bool stream>
  void store(std::byte* to) const {
    for (int i = 0; i < kVectors; ++i) storeVector<stream>(to + 16 * i, v[i]);
  }
  static Scalar widen(Element e) { return e; }
  static Element narrow(Scalar s) { return s; }
};

// How eight elements of 16 bits become two vectors of f32, and two vectors eight elements.
struct Bf16Format {
  using Element = bf16;
  static F32x4 lowOf(U16x8 x) {
    return reinterpret_cast<F32x4>(__builtin_shufflevector(U16x8{}, x, 0, 8, 1, 9, 2, 10, 3, 11));
  }
  static F32x4 highOf(U16x8 x) {
    return reinterpret_cast<F32x4>(__builtin_shufflevector(U16x8{}, x, 4, 12, 5, 13, 6, 14, 7, 15));
  }
  // As toBf16(), in the upper halves.
  static U16x8 rounded(F32x4 x) {
    const U32x4 bits = reinterpret_cast<U32x4>(x);
    const U32x4 nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
    return reinterpret_cast<U16x8>((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : nearest);
  }
  static U16x8 joined(U16x8 low, U16x8 high) { return __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15); }
  static Element narrow(float s) { return toBf16(s); }
};

struct F16Format {
  using Element = f16;
  // As toFloat(), of bits in the lower halves.
  static F32x4 widened(U32x4 wide) {
    const F32x4 scaled = reinterpret_cast<F32x4>((wide & 0x7fffu) << 13) * 0x1p112f;
    const U32x4 special = (wide & 0x7c00u) == 0x7c00u ? U32x4{} + 0x7f800000u : U32x4{};
    return reinterpret_cast<F32x4>(((wide & 0x8000u) << 16) | reinterpret_cast<U32x4>(scaled) | special);
  }
  static F32x4 lowOf(U16x8 x) {
    return widened(reinterpret_cast<U32x4>(__builtin_shufflevector(x, U16x8{}, 0, 8, 1, 9, 2, 10, 3, 11)));
  }
  static F32x4 highOf(U16x8 x) {
    return widened(reinterpret_cast<U32x4>(__builtin_shufflevector(x, U16x8{}, 4, 12, 5, 13, 6, 14, 7, 15)));
  }
  // As toF16(), in the lower halves.
  static U16x8 rounded(F32x4 x) {
    const U32x4 bits = reinterpret_cast<U32x4>(x), magnitude = bits & 0x7fffffffu;
    const U32x4 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const U32x4 denormal = reinterpret_cast<U32x4>(reinterpret_cast<F32x4>(magnitude) + 0.5f) - 0x3f000000u;
    const U32x4 nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    U32x4 result = magnitude < 0x38800000u ? denormal : normal;
    result = magnitude >= 0x477ff000u ? U32x4{} + 0x7c00u : result;
    result = magnitude > 0x7f800000u ? nan : result;
    return reinterpret_cast<U16x8>(result | ((bits >> 16) & 0x8000u));
  }
  static U16x8 joined(U16x8 low, U16x8 high) { return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14); }
  static Element narrow(float s) { return toF16(s); }
};

template <class Format>
struct HalfLine {
  using Element = typename Format::Element;
  using Scalar = float;
  F32x4 low[kVectors], high[kVectors];

  void load(const std::byte* from) {
    for (int i = 0; i < kVectors; ++i) {
      const auto x = loadVector<U16x8>(from + 16 * i);
      low[i] = Format::lowOf(x);
      high[i] = Format::highOf(x);
    }
  }
  template <Reduction kind>
  void add(const std::byte* from) {
    for (int i = 0; i < kVectors; ++i) {
      const auto x = loadVector<U16x8>(from + 16 * i);
      low[i] = combined<kind>(low[i], Format::lowOf(x));
      high[i] = combined<kind>(high[i], Format::highOf(x));
    }
  }
  template <bool stream>
  void store(std::byte* to) const {
    for (int i = 0; i < kVectors; ++i) {
      storeVector<stream>(to + 16 * i, Format::joined(Format::rounded(low[i]), Format::rounded(high[i])));
    }
  }
  static Scalar widen(Element e) { return toFloat(e); }
  static Element narrow(Scalar s) { return Format::narrow(s); }
};

// Elements of any address, one by one.
template <class Line, Reduction kind>
void combineFew(const Sources& from, const Targets& to, int64_t begin, int64_t end) {
  using Element = typename Line::Element;
  constexpr auto size = static_cast<int64_t>(sizeof(Element));
  const auto at = [&](size_t r, int64_t i) {
    Element e;
    std::memcpy(&e, from.data[r] + from.offset + i * size, sizeof e);
    return Line::widen(e);
  };
  for (int64_t i = begin; i < end; ++i) {
    auto sum = at(0, i);
    for (size_t r = 1; r < from.data.size(); ++r) sum = combined<kind>(sum, at(r, i));
    const Element e = Line::narrow(sum);
    for (std::byte* out : to.data) std::memcpy(out + to.offset + i * size, &e, sizeof e);
  }
}

template <class Line, Reduction kind, bool stream>
void combineLines(const Sources& from, const Targets& to, int64_t begin, int64_t end) {
  const std::span sources = from.data;
  const std::span targets = to.data;
  for (int64_t at = begin; at < end; at += kLineBytes) {
    Line line;
    line.load(sources[0] + from.offset + at);
    for (size_t r = 1; r < sources.size(); ++r) line.template add<kind>(sources[r] + from.offset + at);
    for (std::byte* out : targets) line.template store<stream>(out + to.offset + at);
  }
}

// Of two sources, as ranks in pairs have: nothing but the data is read.
template <class Line, Reduction kind, bool stream, int targets>
void combineTwo(const Sources& from, const Targets& to, int64_t begin, int64_t end) {
  const std::byte* const a = from.data[0] + from.offset;
  const std::byte* const b = from.data[1] + from.offset;
  std::byte* const first = to.data[0] + to.offset;
  std::byte* const last = to.data[targets - 1] + to.offset;
  for (int64_t at = begin; at < end; at += kLineBytes) {
    Line line;
    line.load(a + at);
    line.template add<kind>(b + at);
    line.template store<stream>(first + at);
    if constexpr (targets > 1) line.template store<stream>(last + at);
  }
}

template <class Line, Reduction kind, bool stream>
void combineAll(const Sources& from, const Targets& to, int64_t begin, int64_t end) {
  const bool two = from.data.size() == 2;
  if (two && to.data.size() == 1) return combineTwo<Line, kind, stream, 1>(from, to, begin, end);
  if (two && to.data.size() == 2) return combineTwo<Line, kind, stream, 2>(from, to, begin, end);
  combineLines<Line, kind, stream>(from, to, begin, end);
}

int64_t misalignment(const std::byte* p) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kLineBytes); }

// The elements before the first whole line of all targets; -1: they have none in common.
int64_t elementsBeforeLines(const Targets& to, int64_t size) {
  const int64_t first = misalignment(to.data[0] + to.offset);
  for (const std::byte* out : to.data) {
    if (misalignment(out + to.offset) != first) return -1;
  }
  const int64_t before = (kLineBytes - first) % kLineBytes;
  return before % size == 0 ? before / size : -1;
}

template <class Line, Reduction kind>
void combine(const Sources& from, const Targets& to, int64_t count, bool stream) {
  constexpr auto size = static_cast<int64_t>(sizeof(typename Line::Element));
  constexpr int64_t perLine = kLineBytes / size;
  const int64_t head = stream ? elementsBeforeLines(to, size) : -1;
  const bool streams = head >= 0 && head < count;
  const int64_t begin = streams ? head : 0;
  const int64_t end = begin + (count - begin) / perLine * perLine;
  combineFew<Line, kind>(from, to, 0, begin);
  if (streams) {
    combineAll<Line, kind, true>(from, to, begin * size, end * size);
    fence();
  } else {
    combineAll<Line, kind, false>(from, to, begin * size, end * size);
  }
  combineFew<Line, kind>(from, to, end, count);
}

template <class Line>
Combine combineOf(Reduction reduction) {
  if (reduction == Reduction::max) return combine<Line, Reduction::max>;
  if (reduction == Reduction::min) return combine<Line, Reduction::min>;
  return combine<Line, Reduction::sum>;
}

}  // namespace

Combine combineOf(DType dtype, Reduction reduction) {
  switch (dtype) {
    case DType::f32:
      return combineOf<PlainLine<float, F32x4>>(reduction);
    case DType::f64:
      return combineOf<PlainLine<double, F64x2>>(reduction);
    case DType::bf16:
      return combineOf<HalfLine<Bf16Format>>(reduction);
    case DType::f16:
      return combineOf<HalfLine<F16Format>>(reduction);
    default:
      return combineOf<PlainLine<int32_t, I32x4>>(reduction);
  }
}

void streamBytes(std::byte* to, const std::byte* from, int64_t bytes) {
  const int64_t head = std::min((kLineBytes - misalignment(to)) % kLineBytes, bytes);
  std::memcpy(to, from, static_cast<size_t>(head));
  int64_t at = head;
  for (; at + kLineBytes <= bytes; at += kLineBytes) {
    PlainLine<int32_t, I32x4> line;
    line.load(from + at);
    line.store<true>(to + at);
  }
  fence();
  std::memcpy(to + at, from + at, static_cast<size_t>(bytes - at));
}

}  // namespace meshwork
