// What this machine can do at most, for bench/: peak rates of multiply-adds, and memory-bound loops written by hand.
// Compiled when the benchmarks run (-O3 -march=native). Reads one command a line, answers one JSON line each:
//   fma THREADS | pairs THREADS | amx THREADS      {"gflops": ...}   0 where the processor has no such instruction
//   chain THREADS COUNT                            {"plain": s, "streamed": s}   y = relu((x * a + b) * c)
//   sum THREADS COUNT                              {"seconds": s}   two arrays added, the result written to two more
//   copy THREADS BYTES                             {"plain": s, "streamed": s}
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cpuid.h>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 64;
#elif defined(__AVX__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif
using Floats = float __attribute__((vector_size(kWidth)));
constexpr int64_t kLanes = kWidth / static_cast<int>(sizeof(float));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Threads that begin every repeat together; the seconds of each repeat until the last has ended.
std::vector<double> timed(int threads, int repeats, const std::function<void(int)>& body) {
  std::atomic<int> arrived{0};
  std::vector<double> seconds;
  const auto barrier = [&](int round) {
    arrived.fetch_add(1);
    while (arrived.load() < threads * (round + 1)) _mm_pause();
  };
  const auto work = [&](int thread) {
    int round = 0;
    for (int i = 0; i < repeats; ++i) {
      barrier(round++);
      const double begin = now();
      body(thread);
      barrier(round++);
      if (thread == 0) seconds.push_back(now() - begin);
    }
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(work, t);
  work(0);
  for (std::thread& helper : helpers) helper.join();
  return seconds;
}

// Rate of a body that does `flops` on each thread.
double rate(int threads, double flops, const std::function<void()>& body) {
  return threads * flops / median(timed(threads, 9, [&](int) { body(); })) / 1e9;
}

constexpr int64_t kRounds = 1 << 20;
constexpr int kChains = 16;  // independent sums: latency times units, and some

void multiplyAdd() {
  Floats sums[kChains] = {};
  Floats a = Floats{} + 1.0000001f, b = Floats{} + 1e-7f;
  for (int64_t i = 0; i < kRounds; ++i) {
    for (Floats& sum : sums) {
      sum = sum * a + b;
#if defined(__AVX512F__)
      asm volatile("" : "+v"(sum));
#else
      asm volatile("" : "+x"(sum));
#endif
    }
  }
}

__attribute__((target("avx512f,avx512bf16"))) void multiplyPairs() {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int64_t i = 0; i < kRounds; ++i) {
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, a, b);
      asm volatile("" : "+v"(sum));
    }
  }
}

struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Assembler, so that any compiler takes it. Four sums, as the best kernels have.
void multiplyTiles() {
  static const TileConfig config;
  alignas(64) static const uint16_t ones[16 * 32] = {};
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  const int64_t stride = 64;
  asm volatile(
      "tileloadd (%0,%1,1), %%tmm4\n tileloadd (%0,%1,1), %%tmm5\n"
      "tileloadd (%0,%1,1), %%tmm6\n tileloadd (%0,%1,1), %%tmm7\n"
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n" ::"r"(ones),
      "r"(stride)
      : "memory");
  for (int64_t i = 0; i < kRounds / 4; ++i) {
    asm volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n" ::
            : "memory");
  }
  asm volatile("tilerelease" ::: "memory");
}

bool hasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ((d >> 24) & 1u) == 0 || ((d >> 22) & 1u) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Large pages where the system gives them, as the engine's memory has.
float* allocate(int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) abort();
  madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  memset(data, 0, static_cast<size_t>(bytes));
  return static_cast<float*>(data);
}

Floats load(const float* from) {
  Floats v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <bool stream>
void store(float* to, Floats v) {
  if constexpr (stream) {
#if defined(__AVX512F__)
    return _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX__)
    return _mm256_stream_ps(to, (__m256)v);
#else
    return _mm_stream_ps(to, (__m128)v);
#endif
  }
  memcpy(to, &v, sizeof v);
}

struct Range {
  int64_t begin, end;
};
Range shareOf(int64_t count, int thread, int threads) {
  const int64_t each = count / threads / 1024 * 1024;
  return {each * thread, thread == threads - 1 ? count / kLanes * kLanes : each * (thread + 1)};
}

template <bool stream>
void chain(const float* x, float* y, Range range, float a, float b, float c) {
  for (int64_t i = range.begin; i < range.end; i += kLanes) {
    const Floats v = (load(x + i) * a + b) * c;
    store<stream>(y + i, v > 0.0f ? v : Floats{});
  }
  _mm_sfence();
}

template <bool stream>
void copy(const float* x, float* y, Range range) {
  for (int64_t i = range.begin; i < range.end; i += kLanes) store<stream>(y + i, load(x + i));
  _mm_sfence();
}

void sum(float* const* arrays, Range range) {
  for (int64_t i = range.begin; i < range.end; i += kLanes) {
    const Floats v = load(arrays[0] + i) + load(arrays[1] + i);
    store<true>(arrays[2] + i, v);
    store<true>(arrays[3] + i, v);
  }
  _mm_sfence();
}

// Median seconds after one repeat that is not counted.
double seconds(int threads, const std::function<void(int)>& body) {
  std::vector<double> all = timed(threads, 10, body);
  all.erase(all.begin());
  return median(all);
}

std::string answer(const std::string& line) {
  std::istringstream words(line);
  std::string what;
  int threads = 1;
  int64_t count = 0;
  words >> what >> threads >> count;
  char text[200];
  if (what == "fma" || what == "pairs" || what == "amx") {
    double gflops = 0;
    if (what == "fma") gflops = rate(threads, 2.0 * kLanes * kChains * kRounds, multiplyAdd);
    if (what == "pairs" && __builtin_cpu_supports("avx512bf16")) {
      gflops = rate(threads, 64.0 * kChains * kRounds, multiplyPairs);
    }
    if (what == "amx" && hasAmx()) gflops = rate(threads, 16384.0 * kRounds, multiplyTiles);
    snprintf(text, sizeof text, "{\"gflops\": %.6g}", gflops);
    return text;
  }
  const int64_t bytes = what == "copy" ? count : count * 4;
  const int64_t floats = bytes / 4;
  std::vector<float*> arrays;
  for (int i = 0; i < (what == "sum" ? 4 : 2); ++i) arrays.push_back(allocate(bytes));
  const auto share = [&](int t) { return shareOf(floats, t, threads); };
  if (what == "sum") {
    const double s = seconds(threads, [&](int t) { sum(arrays.data(), share(t)); });
    snprintf(text, sizeof text, "{\"seconds\": %.6g}", s);
  } else {
    const bool copies = what == "copy";
    const double plain = seconds(threads, [&](int t) {
      if (copies) return copy<false>(arrays[0], arrays[1], share(t));
      chain<false>(arrays[0], arrays[1], share(t), 1.5f, 0.25f, 0.75f);
    });
    const double streamed = seconds(threads, [&](int t) {
      if (copies) return copy<true>(arrays[0], arrays[1], share(t));
      chain<true>(arrays[0], arrays[1], share(t), 1.5f, 0.25f, 0.75f);
    });
    snprintf(text, sizeof text, "{\"plain\": %.6g, \"streamed\": %.6g}", plain, streamed);
  }
  for (float* array : arrays) munmap(array, static_cast<size_t>(bytes));
  return text;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) std::cout << answer(line) << std::endl;
}
