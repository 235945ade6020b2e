// Threaded code of the elementwise kernel: an expression over a group of elements, which one function after another
// computes in registers, each jumping to the next. What cannot stay in registers lies in buffers of one group.
#pragma once
#include <type_traits>
#include <utility>

#include "backend/cpu/kernels/rows.h"
#include "backend/cpu/kernels/stream.h"
#include "backend/expression.h"

namespace meshwork::MESHWORK_ISA {

// Elements of a group: eight vectors (what functions get in registers) of four-byte elements, or, in expressions with
// float64 anywhere, of float64 (and then four of the others: their functions compute on all eight, for nothing).
constexpr int kGroupVectors = 8;
constexpr int64_t kGroupBytes = int64_t{kGroupVectors} * kVectorBytes;
constexpr int64_t kPrefetchedBytes = 4096;
constexpr int64_t groupElements(bool wide) { return kGroupBytes / (wide ? 8 : 4); }

// Where a value's groups lie, one every `step` bytes; a step of 0 for buffers of one group.
struct Source {
  std::byte* data;
  int64_t step;
};

struct Code;
// One function of the code: the numbers in hand come and go in registers, as raw bits.
using Run = void (*)(const Code* at, const Source* sources, int64_t group, F32 a0, F32 a1, F32 a2, F32 a3, F32 a4,
                     F32 a5, F32 a6, F32 a7);
struct Code {
  Run run;
  int32_t x, y;  // its sources
};

// The numbers in hand.
struct Hand {
  F32 v[kGroupVectors];
};

// A function of the code from what it does with the numbers in hand: Body::run(hand, memory of x, memory of y).
template <class Body>
void runCode(const Code* at, const Source* sources, int64_t group, F32 a0, F32 a1, F32 a2, F32 a3, F32 a4, F32 a5,
             F32 a6, F32 a7) {
  Hand hand{{a0, a1, a2, a3, a4, a5, a6, a7}};
  const Source &x = sources[at->x], &y = sources[at->y];
  Body::run(hand, x.data + group * x.step, y.data + group * y.step);
  ++at;
  const F32* v = hand.v;
  return at->run(at, sources, group, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
}

inline void endCode(const Code*, const Source*, int64_t, F32, F32, F32, F32, F32, F32, F32, F32) {}

// Computes one group.
inline void runGroup(const Code* code, const Source* sources, int64_t group) {
  code->run(code, sources, group, F32{}, F32{}, F32{}, F32{}, F32{}, F32{}, F32{}, F32{});
}

// f(0), ..., f(n - 1), written out: the numbers in hand are found in registers by constants only.
#define MESHWORK_FLAT __attribute__((always_inline))
template <int n, class F>
MESHWORK_INLINE void repeat(const F& f) {
  [&]<int... k>(std::integer_sequence<int, k...>) MESHWORK_FLAT { (f(k), ...); }
  (std::make_integer_sequence<int, n>{});
}

// ---- results ----

template <class T>
MESHWORK_INLINE Vec<T> inHand(const Hand& hand, int k) {
  return bitCast<Vec<T>>(hand.v[k]);
}
template <class T>
MESHWORK_INLINE Vec<T> vectorAt(const std::byte* from, int k) {
  return load(reinterpret_cast<const T*>(from) + k * kLanes<T>);
}

template <class T>
using HalfOf = typename VectorOf<T, kVectorBytes / 2>::type;

// Two vectors of float64 (or masks as wide) as one of four-byte elements, and back.
template <class T, class V>
MESHWORK_INLINE Vec<T> join(V low, V high) {
  const HalfOf<T> halves[2] = {__builtin_convertvector(low, HalfOf<T>), __builtin_convertvector(high, HalfOf<T>)};
  Vec<T> both;
  std::memcpy(&both, halves, sizeof both);
  return both;
}
template <class T>
MESHWORK_INLINE HalfOf<T> halfOf(Vec<T> both, int which) {
  HalfOf<T> half;
  std::memcpy(&half, reinterpret_cast<const char*>(&both) + which * sizeof half, sizeof half);
  return half;
}

// Takes results in hand: as they are, or (tests on float64) twice as wide as the int32 they stand for.
template <class R, class V>
MESHWORK_INLINE void take(Hand& hand, const V (&results)[kGroupVectors]) {
  if constexpr (sizeof(results[0][0]) == sizeof(R)) {
    repeat<kGroupVectors>([&](int k) MESHWORK_FLAT { hand.v[k] = bitCast<F32>(results[k]); });
  } else {
    repeat<kGroupVectors / 2>(
        [&](int k) MESHWORK_FLAT { hand.v[k] = bitCast<F32>(join<R>(results[2 * k], results[2 * k + 1])); });
  }
}

// Keeps loads in the order in which they are written: compilers turn it around, and a processor that reads ahead in
// memory loses track.
MESHWORK_INLINE void inOrder(F32& loaded) {
#if MESHWORK_ISA_LEVEL == 2
  asm volatile("" : "+v"(loaded));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(loaded));
#else
  (void)loaded;
#endif
}

// ---- bodies ----

// hand = op(hand)
template <class R, class T, class Op>
struct Unary {
  MESHWORK_INLINE static void run(Hand& hand, const std::byte*, const std::byte*) {
    decltype(Op()(Vec<T>{})) results[kGroupVectors];
    repeat<kGroupVectors>([&](int k) MESHWORK_FLAT { results[k] = Op()(inHand<T>(hand, k)); });
    take<R>(hand, results);
  }
};

// hand = op(hand, x), or op(x, hand); where x is uniform, one vector of it is read.
template <class R, class T, class Op, bool reversed, bool uniform>
struct Binary {
  MESHWORK_INLINE static void run(Hand& hand, const std::byte* x, const std::byte*) {
    decltype(Op()(Vec<T>{}, Vec<T>{})) results[kGroupVectors];
    const Vec<T> first = vectorAt<T>(x, 0);
    repeat<kGroupVectors>([&](int k) MESHWORK_FLAT {
      F32 other = bitCast<F32>(uniform ? first : vectorAt<T>(x, k));
      if constexpr (!uniform) inOrder(other);
      results[k] = reversed ? Op()(bitCast<Vec<T>>(other), inHand<T>(hand, k))
                            : Op()(inHand<T>(hand, k), bitCast<Vec<T>>(other));
    });
    take<R>(hand, results);
  }
};

// hand = hand ? x : y; hand is int32.
template <class T>
struct Select {
  MESHWORK_INLINE static void run(Hand& hand, const std::byte* x, const std::byte* y) {
    Vec<T> results[kGroupVectors];
    repeat<kGroupVectors>([&](int k) MESHWORK_FLAT {
      const Vec<T> yes = vectorAt<T>(x, k), no = vectorAt<T>(y, k);
      if constexpr (sizeof(T) == sizeof(int32_t)) {
        results[k] = inHand<int32_t>(hand, k) != 0 ? yes : no;
      } else {
        const I64 take = __builtin_convertvector(halfOf<int32_t>(inHand<int32_t>(hand, k / 2), k % 2), I64);
        results[k] = take != 0 ? yes : no;
      }
    });
    take<T>(hand, results);
  }
};

// What a storage type is computed as here: int32 for bool (uint8_t), float32 for the 16-bit floats.
template <class T>
using ValueOf = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, Compute<T>>;

// Vectors of four-byte elements that a group has.
constexpr int vectorsOf(bool wide) { return wide ? kGroupVectors / 2 : kGroupVectors; }
template <class V>
constexpr int vectorsFor(bool wide) {
  return sizeof(V) == 8 ? kGroupVectors : vectorsOf(wide);
}

using U8Quarter = VectorOf<uint8_t, kVectorBytes / 4>::type;

template <class T>
MESHWORK_INLINE Vec<ValueOf<T>> fetch(const std::byte* from, int k) {
  const T* at = reinterpret_cast<const T*>(from) + k * kLanes<ValueOf<T>>;
  if constexpr (__is_same(T, uint8_t)) {
    U8Quarter flags;
    std::memcpy(&flags, at, sizeof flags);
    return (__builtin_convertvector(flags, I32) != 0) & 1;
  } else {
    return load(at);
  }
}

// hand = x
template <class T, bool wide>
struct Load {
  MESHWORK_INLINE static void run(Hand& hand, const std::byte* x, const std::byte*) {
    repeat<vectorsFor<ValueOf<T>>(wide)>([&](int k) MESHWORK_FLAT {
      hand.v[k] = bitCast<F32>(fetch<T>(x, k));
      inOrder(hand.v[k]);
    });
  }
};

// y = x in the type that it is computed in; the hand is left as it is.
template <class T, bool wide>
struct Widen {
  MESHWORK_INLINE static void run(Hand&, const std::byte* x, const std::byte* y) {
    using V = ValueOf<T>;
    V* to = reinterpret_cast<V*>(const_cast<std::byte*>(y));
    repeat<vectorsFor<V>(wide)>([&](int k) MESHWORK_FLAT { store(to + k * kLanes<V>, fetch<T>(x, k)); });
  }
};

// x = hand, whose type is V, in storage type T.
template <class T, class V, bool wide>
struct Store {
  MESHWORK_INLINE static void run(const Hand& hand, const std::byte* x, const std::byte*) {
    T* to = reinterpret_cast<T*>(const_cast<std::byte*>(x));
    repeat<vectorsFor<V>(wide)>([&](int k) MESHWORK_FLAT {
      const Vec<V> value = inHand<V>(hand, k);
      if constexpr (__is_same(T, uint8_t)) {
        const auto flags = (value != 0) & 1;
        for (int i = 0; i < kLanes<V>; ++i) to[k * kLanes<V> + i] = static_cast<uint8_t>(flags[i]);
      } else {
        store(to + k * kLanes<V>, value);
      }
    });
  }
};

// The same past the caches.
struct StreamStore {
  MESHWORK_INLINE static void run(const Hand& hand, const std::byte* x, const std::byte*) {
    repeat<kGroupVectors>([&](int k)
                              MESHWORK_FLAT { streamVector(const_cast<std::byte*>(x) + k * kVectorBytes, hand.v[k]); });
  }
};

// ---- finding loads and stores ----

template <template <class, bool> class Body>
Run findMove(DType dtype, bool wide) {
  switch (dtype) {
    case DType::f64:
      return runCode<Body<double, true>>;
    case DType::bf16:
      return wide ? runCode<Body<bf16, true>> : runCode<Body<bf16, false>>;
    case DType::f16:
      return wide ? runCode<Body<f16, true>> : runCode<Body<f16, false>>;
    case DType::i32:
      return wide ? runCode<Body<int32_t, true>> : runCode<Body<int32_t, false>>;
    case DType::boolean:
      return wide ? runCode<Body<uint8_t, true>> : runCode<Body<uint8_t, false>>;
    default:
      return wide ? runCode<Body<float, true>> : runCode<Body<float, false>>;
  }
}

template <class V, bool wide>
Run findStoreOf(DType dtype) {
  if (dtype == DType::boolean) return runCode<Store<uint8_t, V, wide>>;
  if constexpr (__is_same(V, float)) {
    if (dtype == DType::bf16) return runCode<Store<bf16, V, wide>>;
    if (dtype == DType::f16) return runCode<Store<f16, V, wide>>;
  }
  return runCode<Store<V, V, wide>>;
}

// Stores a value of a type to memory of a dtype that can hold it.
inline Run findStore(ValueType type, DType dtype, bool wide) {
  if (type == ValueType::f64) return findStoreOf<double, true>(dtype);
  if (type == ValueType::i32) return wide ? findStoreOf<int32_t, true>(dtype) : findStoreOf<int32_t, false>(dtype);
  return wide ? findStoreOf<float, true>(dtype) : findStoreOf<float, false>(dtype);
}

// All four vectors of a buffer, whatever they are.
constexpr Run kLoadGroup = runCode<Load<float, false>>;
constexpr Run kStoreGroup = runCode<Store<float, float, false>>;

}  // namespace meshwork::MESHWORK_ISA
