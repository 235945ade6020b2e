// The emulator itself: what it computes, and that it finds what is wrong on purpose.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/cuda/kernels/mma.h"
#include "core/dtype.h"
#include "test/harness.h"

namespace meshwork::test {
namespace {

using cuda::copyAsync16;

template <class... P, class... A>
std::string errorOf(dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), A... arguments) {
  const bool ran = emulator::launch(grid, block, shared, kernel, arguments...);
  const std::string error = emulator::takeError();
  CHECK_EQ(ran, error.empty());
  return error;
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// ---- what is right ----

__global__ void sumBlock(const float* x, float* y) {
  MESHWORK_SHARED_ARRAY(float, partial, [256]);
  partial[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) y[blockIdx.x] = partial[0];
}

TEST(emulator_runs_blocks_and_barriers) {
  std::vector<float> x(256 * 20), y(20, -1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 97);
  for (uint64_t seed = 1; seed < 5; ++seed) {
    emulator::setSeed(seed);
    CHECK_EQ(errorOf(20, 256, 0, sumBlock, x.data(), y.data()), std::string());
    for (size_t b = 0; b < 20; ++b) {
      float expected = 0;
      for (size_t i = 0; i < 256; ++i) expected += x[b * 256 + i];
      CHECK_EQ(y[b], expected);
    }
  }
}

__global__ void shuffles(int* y) {
  const int lane = static_cast<int>(threadIdx.x % 32), at = static_cast<int>(threadIdx.x) * 8;
  y[at] = __shfl_xor_sync(0xffffffffu, lane, 16);
  y[at + 1] = __shfl_down_sync(0xffffffffu, lane, 3);
  y[at + 2] = __shfl_up_sync(0xffffffffu, lane, 3);
  y[at + 3] = __shfl_sync(0xffffffffu, lane, 5);
  y[at + 4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 2));
  y[at + 5] = __reduce_add_sync(0xffffffffu, lane);
  y[at + 6] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
  y[at + 7] = __shfl_down_sync(0xffffffffu, lane, 2, 8);
}

TEST(emulator_shuffles) {
  std::vector<int> y(64 * 8);
  CHECK_EQ(errorOf(1, 64, 0, shuffles, y.data()), std::string());
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    const int* row = y.data() + t * 8;
    CHECK_EQ(row[0], lane ^ 16);
    CHECK_EQ(row[1], lane + 3 < 32 ? lane + 3 : lane);
    CHECK_EQ(row[2], lane >= 3 ? lane - 3 : lane);
    CHECK_EQ(row[3], 5);
    CHECK_EQ(static_cast<uint32_t>(row[4]), 0xaaaaaaaau);
    CHECK_EQ(row[5], 496);
    CHECK_EQ(row[6], lane < 16 ? lane ^ 1 : lane ^ 2);
    CHECK_EQ(row[7], lane % 8 + 2 < 8 ? lane + 2 : lane);
  }
}

// One warp multiplies a 16 x 16 (or 16 x 8) by a 16 x 8 (8 x 8) matrix, fed by the matrix loads where `kLoads`.
template <int kType, bool kLoads>
__global__ void multiply(const uint16_t* a, const uint16_t* b, const float* tf32A, const float* tf32B, float* c) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  uint32_t ra[4], rb[2];
  float rc[4];
  MESHWORK_SHARED_ARRAY(uint16_t, tileA, [16][24]);
  MESHWORK_SHARED_ARRAY(uint16_t, tileB, [16][8]);
  if constexpr (kType == 2) {
    for (int i = 0; i < 4; ++i) ra[i] = __float_as_uint(tf32A[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) rb[i] = __float_as_uint(tf32B[(t + i * 4) * 8 + g]);
  } else if constexpr (kLoads) {
    copyAsync16(&tileA[lane / 2][lane % 2 * 8], a + lane * 8);
    copyAsync16(&tileB[lane % 16][0], b + lane % 16 * 8);
    cuda::commitCopies();
    cuda::waitCopies<0>();
    __syncwarp();
    cuda::loadMatrices(ra, &tileA[lane % 16][lane / 16 * 8]);
    cuda::loadMatricesTransposed(rb, &tileB[lane % 16][0]);
  } else {
    const auto pair = [](uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; };
    for (int i = 0; i < 4; ++i) {
      const uint16_t* at = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
      ra[i] = pair(at[0], at[1]);
    }
    for (int i = 0; i < 2; ++i) rb[i] = pair(b[(2 * t + 8 * i) * 8 + g], b[(2 * t + 8 * i + 1) * 8 + g]);
  }
  for (int i = 0; i < 4; ++i) rc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if constexpr (kType == 0) cuda::mmaBf16(rc, ra, rb);
  if constexpr (kType == 1) cuda::mmaF16(rc, ra, rb);
  if constexpr (kType == 2) cuda::mmaTf32(rc, ra, rb);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = rc[i];
}

template <int kType, bool kLoads>
void checkMultiply() {
  constexpr int depth = kType == 2 ? 8 : 16;
  // Eighths are exact in all three formats; so are the float16 numbers 1 + n / 8.
  alignas(16) uint16_t a[256], b[128];
  float fa[128], fb[64], c[128], expected[128];
  const auto value = [](int i, int n) { return 1.0f + static_cast<float>((i * 7 + n) % 8) / 8; };
  const auto encode = [](float x) {
    const auto half = static_cast<uint16_t>(0x3c00 + static_cast<int>((x - 1) * 1024));  // 1 <= x < 2
    return kType == 1 ? half : toBf16(x).bits;
  };
  for (int i = 0; i < 256; ++i) a[i] = encode(value(i, i / 16));
  for (int i = 0; i < 128; ++i) b[i] = encode(value(i * 3, i / 8));
  for (int i = 0; i < 128; ++i) fa[i] = value(i, i / 8);
  for (int i = 0; i < 64; ++i) fb[i] = value(i * 3, i / 8);
  for (int i = 0; i < 128; ++i) {
    expected[i] = c[i] = static_cast<float>(i);
    for (int k = 0; k < depth; ++k) {
      const int row = i / 8, column = i % 8;
      expected[i] +=
          kType == 2 ? fa[row * 8 + k] * fb[k * 8 + column] : value(row * 16 + k, row) * value((k * 8 + column) * 3, k);
    }
  }
  CHECK_EQ(errorOf(1, 32, 0, multiply<kType, kLoads>, a, b, fa, fb, c), std::string());
  for (int i = 0; i < 128; ++i) CHECK_EQ(c[i], expected[i]);
}

TEST(emulator_matrix_instructions) {
  checkMultiply<0, false>();
  checkMultiply<0, true>();
  checkMultiply<1, false>();
  checkMultiply<1, true>();
  checkMultiply<2, false>();
}

__global__ void dynamicSum(float* y) {
  MESHWORK_DYNAMIC_SHARED(bytes);
  auto* values = reinterpret_cast<float*>(bytes);
  values[threadIdx.x] = 1;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += values[i];
  y[threadIdx.x] = sum;
}

TEST(emulator_dynamic_shared_memory) {
  std::vector<float> y(64);
  CHECK_EQ(errorOf(2, 64, 64 * sizeof(float), dynamicSum, y.data()), std::string());
  CHECK_EQ(y[63], 64.0f);
  CHECK(contains(errorOf(1, 64, 100000, dynamicSum, y.data()), "dynamic shared memory"));
  CHECK(emulator::allowDynamicShared(reinterpret_cast<const void*>(dynamicSum), 100000));
  CHECK_EQ(errorOf(1, 64, 100000, dynamicSum, y.data()), std::string());
  CHECK(!emulator::allowDynamicShared(reinterpret_cast<const void*>(dynamicSum), 1 << 20));
}

// ---- what is wrong on purpose ----

__global__ void divergentBarrier() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void earlyReturn() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
__global__ void missingLane(int* y) {
  if (threadIdx.x != 7) y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void outOfMask(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);
}
__global__ void notInMask(int* y) { y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1); }
__global__ void differentShuffles(int* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}
__global__ void sharedOverrun() {
  MESHWORK_SHARED_ARRAY(float, few, [4]);
  volatile float* at = few;
  at[4 + threadIdx.x] = 1;
}
__global__ void unaligned(const uint16_t* x) {
  MESHWORK_SHARED_ARRAY(uint16_t, tile, [32]);
  copyAsync16(tile, x + 1);
}

TEST(emulator_finds_mistakes) {
  alignas(16) static uint16_t numbers[64] = {};
  std::vector<int> y(64);
  CHECK(contains(errorOf(1, 64, 0, divergentBarrier), "another barrier"));
  CHECK(contains(errorOf(1, 64, 0, earlyReturn), "waits for ever at a barrier"));
  CHECK(contains(errorOf(1, 32, 0, missingLane, y.data()), "waits for ever at a warp's exchange"));
  CHECK(contains(errorOf(1, 32, 0, outOfMask, y.data()), "not in the mask"));
  CHECK(contains(errorOf(1, 32, 0, notInMask, y.data()), "not in the mask it gives"));
  CHECK(contains(errorOf(1, 32, 0, differentShuffles, y.data()), "another exchange"));
  CHECK(contains(errorOf(1, 1, 0, sharedOverrun), "a write beh"));
  CHECK(contains(errorOf(1, 1, 0, unaligned, static_cast<const uint16_t*>(numbers)), "not aligned"));
  CHECK(contains(errorOf(1, 2048, 0, divergentBarrier), "2048 threads"));
  CHECK(contains(errorOf(dim3(1, 70000), 1, 0, divergentBarrier), "grid"));
  CHECK_EQ(errorOf(1, 64, 0, shuffles, std::vector<int>(512).data()), std::string());  // and goes on afterwards
}

__global__ void uninitialised(float* y) {
  MESHWORK_SHARED_ARRAY(float, never, [8]);
  y[0] = never[2];
  never[2] = 1;
}
__global__ void unwaited(const float* x, float* y) {
  MESHWORK_SHARED_ARRAY(float, tile, [8]);
  copyAsync16(tile, x);
  y[0] = tile[1];
  cuda::commitCopies();
  cuda::waitCopies<0>();
  y[1] = tile[1];
}
// No barrier between the write and another thread's read.
__global__ void race(int* y) {
  MESHWORK_SHARED_ARRAY(int, values, [64]);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  y[threadIdx.x] = values[63 - threadIdx.x];
}

TEST(emulator_shows_what_depends_on_luck) {
  float y[2] = {};
  alignas(16) const float x[4] = {1, 2, 3, 4};
  CHECK_EQ(errorOf(3, 1, 0, uninitialised, y), std::string());
  CHECK(std::isnan(y[0]));
  CHECK_EQ(errorOf(1, 1, 0, unwaited, x, y), std::string());
  CHECK(std::isnan(y[0]));
  CHECK_EQ(y[1], 2.0f);
  std::vector<int> values(64);
  CHECK_EQ(errorOf(1, 64, 0, race, values.data()), std::string());
  CHECK(std::count(values.begin(), values.end(), -1) > 0);
}

}  // namespace
}  // namespace meshwork::test
