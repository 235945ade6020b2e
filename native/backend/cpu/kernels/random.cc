// Counter-based random numbers, Philox4x32-10: element i of the global tensor is lane i % 4 of counter i / 4, wherever
// it is computed. Numbers are made in batches of whole vectors, in plain arithmetic: same bits on every instruction
// set.
#include "backend/checks/random.h"

#include <algorithm>

#include "backend/cpu/kernels/rows.h"
#include "backend/philox.h"
#include "runtime/pool.h"

#if MESHWORK_ISA_LEVEL == 0 && defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kBatch = 64;    // counters at a time, four numbers each
constexpr int64_t kTask = 16384;  // elements

enum Kind { kBits = 0, kUniform = 1, kNormal = 2 };

// Both halves of the 64-bit products of every lane.
MESHWORK_INLINE void multiplyWide(U32 a, uint32_t b, U32& high, U32& low) {
  const U64 pairs = bitCast<U64>(a);
#if MESHWORK_ISA_LEVEL == 2
  const __m512i factor = _mm512_set1_epi64(b);
  const U64 even = bitCast<U64>(_mm512_mul_epu32(bitCast<__m512i>(pairs), factor));
  const U64 odd = bitCast<U64>(_mm512_mul_epu32(bitCast<__m512i>(pairs >> 32), factor));
#elif MESHWORK_ISA_LEVEL == 1
  const __m256i factor = _mm256_set1_epi64x(b);
  const U64 even = bitCast<U64>(_mm256_mul_epu32(bitCast<__m256i>(pairs), factor));
  const U64 odd = bitCast<U64>(_mm256_mul_epu32(bitCast<__m256i>(pairs >> 32), factor));
#elif defined(__SSE2__)
  const __m128i factor = _mm_set1_epi64x(b);
  const U64 even = bitCast<U64>(_mm_mul_epu32(bitCast<__m128i>(pairs), factor));
  const U64 odd = bitCast<U64>(_mm_mul_epu32(bitCast<__m128i>(pairs >> 32), factor));
#else
  const U64 even = (pairs & 0xffffffffu) * uint64_t{b}, odd = (pairs >> 32) * uint64_t{b};
#endif
  const U64 mask = U64{} + 0xffffffffu;
  low = bitCast<U32>((even & mask) | (odd << 32));
  high = bitCast<U32>((even >> 32) | (odd & ~mask));
}

// The four words of counters first, first + 1, ...: words[lane * kBatch + k] belongs to counter first + k.
void philoxBatch(uint64_t first, int64_t n, uint32_t site, uint32_t step, const uint32_t (&key)[2], uint32_t* words) {
  uint32_t *c0 = words, *c1 = words + kBatch, *c2 = words + 2 * kBatch, *c3 = words + 3 * kBatch;
  const int64_t padded = (n + 15) / 16 * 16;
  for (int64_t k = 0; k < padded; ++k) {
    const uint64_t q = first + static_cast<uint64_t>(k);
    c0[k] = static_cast<uint32_t>(q);
    c1[k] = static_cast<uint32_t>(q >> 32);
    c2[k] = site;
    c3[k] = step;
  }
  for (int64_t k = 0; k < padded; k += kLanes<uint32_t>) {
    U32 c[4] = {load(c0 + k), load(c1 + k), load(c2 + k), load(c3 + k)};
    uint32_t key0 = key[0], key1 = key[1];
    for (int round = 0; round < kPhiloxRounds; ++round) {
      U32 high0, low0, high2, low2;
      multiplyWide(c[0], kPhiloxMultiplier0, high0, low0);
      multiplyWide(c[2], kPhiloxMultiplier1, high2, low2);
      c[0] = high2 ^ c[1] ^ key0;
      c[1] = low2;
      c[2] = high0 ^ c[3] ^ key1;
      c[3] = low0;
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    store(c0 + k, c[0]);
    store(c1 + k, c[1]);
    store(c2 + k, c[2]);
    store(c3 + k, c[3]);
  }
}

MESHWORK_INLINE F32 uniformOf(U32 bits) { return __builtin_convertvector(bitCast<I32>(bits >> 8), F32) * 0x1p-24f; }

// cos and sin of 2 pi u for u in [0, 1). u - quarters / 4 is exact, so that the angle is rounded once.
MESHWORK_INLINE void turn(F32 u, F32& cosine, F32& sine) {
  const F32 quarters = roundEven(u * 4.0f);
  const F32 r = (u - quarters * 0.25f) * 6.283185307f;
  const F32 s = r * r;
  F32 p = splat(2.718274483e-6f);
  p = p * s - 1.983933100e-4f;
  p = p * s + 8.333329374e-3f;
  p = p * s - 1.666666664e-1f;
  const F32 sinR = r + r * (s * p);
  F32 q = splat(2.443278505e-5f);
  q = q * s - 1.388731306e-3f;
  q = q * s + 4.166664562e-2f;
  const F32 cosR = 1.0f - 0.5f * s + s * s * q;
  const I32 k = __builtin_convertvector(quarters, I32) & 3;
  const I32 odd = (k & 1) != 0;
  sine = odd ? cosR : sinR;
  cosine = odd ? sinR : cosR;
  sine = k >= 2 ? -sine : sine;
  cosine = (k == 1) | (k == 2) ? -cosine : cosine;
}

// Turns the words of a batch into numbers, in place: bits stay, others become the bits of float32.
void finishBatch(uint32_t* words, int64_t n, int kind) {
  if (kind == kBits) return;
  for (int64_t k = 0; k < n; k += kLanes<float>) {  // kBatch is a multiple of every vector's length
    for (int pair = 0; pair < 4; pair += 2) {
      uint32_t *a = words + pair * kBatch + k, *b = a + kBatch;
      F32 u1 = uniformOf(load(a)), u2 = uniformOf(load(b));
      if (kind == kNormal) {
        const F32 r = sqrt(-2.0f * log(1.0f - u1));
        F32 cosine, sine;
        turn(u2, cosine, sine);
        u1 = r * cosine;
        u2 = r * sine;
      }
      store(a, bitCast<U32>(u1));
      store(b, bitCast<U32>(u2));
    }
  }
}

struct Generator {
  uint32_t site, step, key[2];
  int kind;

  // Makes the n numbers from global index `first`, as float32 (or int32) bits, in `space`, and returns where they
  // start. At most 4 kBatch - 4 of them.
  const uint32_t* fill(uint64_t first, int64_t n, uint32_t (&space)[4 * kBatch]) const {
    alignas(64) uint32_t words[4 * kBatch];
    const uint64_t lead = first % 4;
    const int64_t counters = (n + static_cast<int64_t>(lead) + 3) / 4;
    philoxBatch(first / 4, counters, site, step, key, words);
    finishBatch(words, counters, kind);
    for (int64_t k = 0; k < counters; ++k) {
      for (int lane = 0; lane < 4; ++lane) space[4 * k + lane] = words[lane * kBatch + k];
    }
    return space + lead;
  }
};

// Where the numbers of y lie in the global tensor.
struct Layout {
  const View* view;
  const int32_t* indices[kMaxRank];  // in each dim, or null
  int64_t indexStride[kMaxRank];
  uint64_t start[kMaxRank], step[kMaxRank];  // of the global index, per dim

  // The global index of the first element of local row `row` (all dims but the last; without the last one's indices,
  // where it has any), and where it is in y.
  uint64_t globalOf(int64_t row, int64_t* offset) const {
    const int last = view->rank - 1;
    uint64_t global = last >= 0 && indices[last] == nullptr ? start[last] * step[last] : 0;
    *offset = 0;
    for (int d = last - 1; d >= 0; --d) {
      const int64_t index = row % view->dims[d];
      row /= view->dims[d];
      global += indexOf(d, index) * step[d];
      *offset += index * view->strides[d];
    }
    return global;
  }
  uint64_t indexOf(int d, int64_t index) const {
    if (indices[d] != nullptr) return static_cast<uint64_t>(int64_t{indices[d][index * indexStride[d]]});
    return start[d] + static_cast<uint64_t>(index);
  }
};

Layout layoutOf(const Call& call) {
  Layout layout{};
  const View& y = *call.out[0].view;
  layout.view = &y;
  int next = 1;
  for (int d = 0; d < y.rank; ++d) {
    if ((call.attrs[attr::random::indexed] >> d & 1) == 0) continue;
    const Operand& indices = call.in[next++];
    layout.indices[d] = indices.as<int32_t>();
    layout.indexStride[d] = indices.stride(0);
  }
  uint64_t step = 1;
  for (int d = y.rank - 1; d >= 0; --d) {
    const int32_t* words = call.attrs + attr::random::count_ + 2 * d;
    layout.start[d] = words[0] < 0 ? 0 : static_cast<uint64_t>(static_cast<int64_t>(call.table[words[0]]));
    layout.step[d] = step;
    step *= static_cast<uint64_t>(static_cast<int64_t>(words[1]));
  }
  return layout;
}

void storeNumbers(const Operand& y, int64_t offset, int64_t stride, const uint32_t* numbers, int64_t n) {
  if (y.view->dtype == DType::i32) return storeRow(y.as<uint32_t>() + offset, stride, numbers, n);
  float values[4 * kBatch];
  std::memcpy(values, numbers, static_cast<size_t>(n) * sizeof(float));
  switch (y.view->dtype) {
    case DType::f64:
      for (int64_t i = 0; i < n; ++i) y.as<double>()[offset + i * stride] = static_cast<double>(values[i]);
      return;
    case DType::bf16:
      return storeRow(y.as<bf16>() + offset, stride, values, n);
    case DType::f16:
      return storeRow(y.as<f16>() + offset, stride, values, n);
    default:
      return storeRow(y.as<float>() + offset, stride, values, n);
  }
}

// Columns [begin, end) of a row, whose first element has this global index.
void fillRow(const Generator& generator, const Operand& y, uint64_t global, int64_t offset, int64_t begin,
             int64_t end) {
  const int64_t stride = y.view->rank == 0 ? 1 : y.stride(y.view->rank - 1);
  uint32_t numbers[4 * kBatch];
  for (int64_t j = begin; j < end;) {
    const uint64_t first = global + static_cast<uint64_t>(j);
    // Up to a whole number of counters, so that all but the first batch of a row start with lane 0.
    const int64_t n = std::min(end - j, 4 * kBatch - 4 - static_cast<int64_t>(first % 4));
    storeNumbers(y, offset + j * stride, stride, generator.fill(first, n, numbers), n);
    j += n;
  }
}

// The same where the last dim's indices are given: run by run of those that ascend by one.
void fillIndexedRow(const Generator& generator, const Operand& y, const Layout& layout, uint64_t global, int64_t offset,
                    int64_t begin, int64_t end) {
  const int last = y.view->rank - 1;
  const int64_t stride = y.stride(last);
  uint32_t numbers[4 * kBatch];
  for (int64_t j = begin; j < end;) {
    const uint64_t first = layout.indexOf(last, j), at = global + first;
    const int64_t most = std::min(end - j, 4 * kBatch - 4 - static_cast<int64_t>(at % 4));
    int64_t n = 1;
    while (n < most && layout.indexOf(last, j + n) == first + static_cast<uint64_t>(n)) ++n;
    storeNumbers(y, offset + j * stride, stride, generator.fill(at, n, numbers), n);
    j += n;
  }
}

void runRandom(const Call& call) {
  const Operand& y = call.out[0];
  const View& view = *y.view;
  if (view.count() == 0) return;
  const Layout layout = layoutOf(call);
  const Operand& keys = call.in[0];
  const auto keyWord = [&](int64_t i) { return static_cast<uint32_t>(keys.as<int32_t>()[i * keys.stride(0)]); };
  const Generator generator{static_cast<uint32_t>(call.attrs[attr::random::site]),
                            keyWord(2),
                            {keyWord(0), keyWord(1)},
                            call.attrs[attr::random::kind]};
  const int64_t width = view.rank == 0 ? 1 : view.dims[view.rank - 1], rows = view.count() / width;
  const int64_t pieces = (width + kTask - 1) / kTask;
  const int64_t perTask = pieces > 1 ? 1 : std::max<int64_t>(1, kTask / width), units = rows * pieces;
  const bool indexedRow = view.rank > 0 && layout.indices[view.rank - 1] != nullptr;
  call.pool->run((units + perTask - 1) / perTask, [&](int64_t task, int) {
    const int64_t last = std::min(units, (task + 1) * perTask);
    for (int64_t unit = task * perTask; unit < last; ++unit) {
      const int64_t begin = (unit % pieces) * kTask, end = std::min(width, begin + kTask);
      int64_t offset;
      const uint64_t global = layout.globalOf(unit / pieces, &offset);
      if (indexedRow) {
        fillIndexedRow(generator, y, layout, global, offset, begin, end);
      } else {
        fillRow(generator, y, global, offset, begin, end);
      }
    }
  });
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(random, {Op::random, checkRandom, runRandom})
