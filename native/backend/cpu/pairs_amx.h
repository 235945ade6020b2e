// Products of pairs by AMX: two by two tiles of 16 x 16 sums, 32 steps of k at a time. Included by pairs.h.
// The instructions are written out: GCC 12's intrinsics tell the compiler nothing of the memory they read and write.
#pragma once

namespace meshwork::MESHWORK_ISA::pairs {

constexpr int kRows = 32, kColumns = 32, kStep = 32;
constexpr int kRowGrain = 16;     // tiles are stored whole
constexpr int64_t kPanelK = 512;  // a right panel of 32 KiB stays in the L1
constexpr int64_t kBlockRows =
    1024;  // with a panel's k, half of a 2 MiB L2: each right panel is packed once for so many rows

constexpr int kTileRows = 16, kTileWords = 16;  // a tile: 16 rows of 64 bytes

#if MESHWORK_PAIRS_EMULATED
// Tiles as plain memory, for tests on processors without AMX.
struct Tiles {
  uint32_t words[8][kTileRows][kTileWords];
};
inline thread_local Tiles tiles;

template <int kTile>
void tileZero() {
  std::memset(tiles.words[kTile], 0, sizeof tiles.words[kTile]);
}
template <int kTile>
void tileLoad(const void* from, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i)
    std::memcpy(tiles.words[kTile][i], static_cast<const char*>(from) + i * stride, 64);
}
template <int kTile>
void tileStore(void* to, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i) std::memcpy(static_cast<char*>(to) + i * stride, tiles.words[kTile][i], 64);
}
template <int kSum, int kLeft, int kRight>
void tileProduct() {
  for (int i = 0; i < kTileRows; ++i) {
    for (int p = 0; p < kTileWords; ++p) {
      const uint32_t left = tiles.words[kLeft][i][p];
      for (int j = 0; j < kTileWords; ++j) {
        const uint32_t right = tiles.words[kRight][p][j];
        auto sum = bitCast<float>(tiles.words[kSum][i][j]);
        sum += bitCast<float>(left << 16) * bitCast<float>(right << 16);
        sum += bitCast<float>(left & 0xffff0000u) * bitCast<float>(right & 0xffff0000u);
        tiles.words[kSum][i][j] = bitCast<uint32_t>(sum);
      }
    }
  }
}
struct Unit {
  Unit() {}
};
#else
template <int kTile>
MESHWORK_INLINE void tileZero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
MESHWORK_INLINE void tileLoad(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
MESHWORK_INLINE void tileStore(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kSum, int kLeft, int kRight>
MESHWORK_INLINE void tileProduct() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(kRight), "i"(kLeft), "i"(kSum));
}

// Sets up this thread's tiles while it lives: all of 16 rows of 64 bytes.
class Unit {
 public:
  Unit() {
    struct alignas(64) {
      uint8_t palette = 1, startRow = 0, reserved[14] = {};
      uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Unit() { asm volatile("tilerelease" ::: "memory"); }
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;
};
#endif

inline void packRight(const bf16* from, bool byRows, int64_t stride, int columns, int64_t k, uint32_t* to) {
  const int width = columns > 16 ? 32 : 16;
  byRows ? packAcross(from, stride, columns, k, to, width) : packLines(from, stride, columns, k, to, width);
  const int64_t filled = (k + 1) / 2, all = (k + kStep - 1) / kStep * (kStep / 2);
  std::memset(to + filled * width, 0, static_cast<size_t>((all - filled) * width) * 4);
}

// One tile of up to 16 rows and 32 steps: 16 pairs a row.
inline void packTile(const bf16* from, bool byRows, int64_t stride, int rows, int64_t k, uint32_t* to) {
  if (rows < kTileRows || k < kStep) std::memset(to, 0, kTileRows * kTileWords * 4);
  if (byRows) {
    for (int i = 0; i < rows; ++i) std::memcpy(to + i * kTileWords, from + i * stride, static_cast<size_t>(k) * 2);
    return;
  }
  uint32_t across[kTileWords * kTileRows];  // [pair][row]
  packAcross(from, stride, rows, k, across, kTileRows);
  const int64_t pairs = (k + 1) / 2;
  for (int i = 0; i < rows; ++i) {
    for (int64_t p = 0; p < pairs; ++p) to[i * kTileWords + p] = across[p * kTileRows + i];
  }
}

// A left panel: for every 32 steps of k one or two tiles.
inline void packLeft(const bf16* from, bool byRows, int64_t stride, int rows, int64_t k, uint32_t* to) {
  for (int64_t p = 0; p < k; p += kStep) {
    const int64_t steps = std::min<int64_t>(kStep, k - p);
    const bf16* column = byRows ? from + p : from + p * stride;
    for (int i = 0; i < rows; i += kTileRows, to += kTileRows * kTileWords) {
      const bf16* corner = byRows ? column + i * stride : column + i;
      packTile(corner, byRows, stride, std::min(kTileRows, rows - i), steps, to);
    }
  }
}

// Words of a packed left panel before step k, a multiple of kStep.
constexpr int64_t leftWords(int rows, int64_t k) { return (rows > kTileRows ? 2 : 1) * kTileRows * (k / 2); }

// to = from + a b for kDown x kAcross tiles; sums are tiles 0 to 3, left sides 4 and 5, right sides 6 and 7.
template <int kDown, int kAcross>
void multiplyTiles(int64_t blocks, const uint32_t* a, const uint32_t* b, const float* from, float* to, int64_t ldTo) {
  constexpr int64_t ldFrom = kColumns * 4;
  if (from) {
    tileLoad<0>(from, ldFrom);
    if constexpr (kAcross == 2) tileLoad<1>(from + 16, ldFrom);
    if constexpr (kDown == 2) tileLoad<2>(from + 16 * kColumns, ldFrom);
    if constexpr (kDown * kAcross == 4) tileLoad<3>(from + 16 * kColumns + 16, ldFrom);
  } else {
    tileZero<0>(), tileZero<1>(), tileZero<2>(), tileZero<3>();
  }
  for (int64_t p = 0; p < blocks; ++p) {
    tileLoad<4>(a, 64);
    tileLoad<6>(b, kAcross * 64);
    tileProduct<0, 4, 6>();
    if constexpr (kAcross == 2) {
      tileLoad<7>(b + 16, kAcross * 64);
      tileProduct<1, 4, 7>();
    }
    if constexpr (kDown == 2) {
      tileLoad<5>(a + kTileRows * kTileWords, 64);
      tileProduct<2, 5, 6>();
    }
    if constexpr (kDown * kAcross == 4) tileProduct<3, 5, 7>();
    a += kDown * kTileRows * kTileWords;
    b += kAcross * kTileRows * kTileWords;
  }
  tileStore<0>(to, ldTo * 4);
  if constexpr (kAcross == 2) tileStore<1>(to + 16, ldTo * 4);
  if constexpr (kDown == 2) tileStore<2>(to + 16 * ldTo, ldTo * 4);
  if constexpr (kDown * kAcross == 4) tileStore<3>(to + 16 * ldTo + 16, ldTo * 4);
}

// to = from + a b for one tile, `from` (rows kColumns apart) null for zeros. Rows and columns up to a multiple of 16
// are written.
inline void multiply(int rows, int columns, int64_t k, const uint32_t* a, const uint32_t* b, const float* from,
                     float* to, int64_t ldTo) {
  const int64_t blocks = (k + kStep - 1) / kStep;
  if (rows > 16) {
    columns > 16 ? multiplyTiles<2, 2>(blocks, a, b, from, to, ldTo)
                 : multiplyTiles<2, 1>(blocks, a, b, from, to, ldTo);
  } else {
    columns > 16 ? multiplyTiles<1, 2>(blocks, a, b, from, to, ldTo)
                 : multiplyTiles<1, 1>(blocks, a, b, from, to, ldTo);
  }
}

}  // namespace meshwork::MESHWORK_ISA::pairs
