// The counter-based generator Philox4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2,
// 3").
#pragma once
#include <cstdint>

#include "core/inline.h"

namespace meshwork {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

// Replaces the counter by its four random words.
MESHWORK_INLINE void philox4x32(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * counter[0],
                   product1 = uint64_t{kPhiloxMultiplier1} * counter[2];
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1;
    counter[0] = next0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = next2;
    counter[3] = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

}  // namespace meshwork
