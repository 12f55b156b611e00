// Nothing but the instruction that products of bf16 are made of: how fast a processor could be.
#pragma once

#include "linear_vectors.h"
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

namespace pagoda {
namespace {

#if defined(__AMX_BF16__)

// Multiplications of so many rounds.
inline int64_t multiply_at_peak(int64_t rounds) {
    configure({kTileWords, kTileWords, kTileWords});
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    tile_zero<4>();
    tile_zero<5>();
    tile_zero<6>();
    tile_zero<7>();
    for (int64_t round = 0; round < rounds; round++) {
        Bf16Tiles::dot<0, 4, 6>();
        Bf16Tiles::dot<1, 4, 7>();
        Bf16Tiles::dot<2, 5, 6>();
        Bf16Tiles::dot<3, 5, 7>();
    }
    release();
    return rounds * 4 * kTileWords * kTileWords * 2 * kTileWords;
}

#else

#if defined(__AVX512BF16__)
typedef Ints PeakFactors;
constexpr int64_t kPeakNumbers = 2 * kLanes;
#else
typedef Floats PeakFactors;  // bf16 is multiplied as floats
constexpr int64_t kPeakNumbers = kLanes;
#endif

// Sums that do not wait for each other.
constexpr int kPeakSums = 12;

// Multiplications of so many rounds.
inline int64_t multiply_at_peak(int64_t rounds) {
    Floats sums[kPeakSums];
    for (int i = 0; i < kPeakSums; i++) sums[i] = splat(float(i));
    PeakFactors left{}, right{};
    for (int64_t round = 0; round < rounds; round++) {
        asm volatile("" : "+x"(left), "+x"(right));  // not the same as before, for all that is known
        for (int i = 0; i < kPeakSums; i++) add_products(sums[i], left, right);
    }
    for (int i = 0; i < kPeakSums; i++) asm volatile("" : : "x"(sums[i]));
    return rounds * kPeakSums * kPeakNumbers;
}

#endif

}  // namespace
}  // namespace pagoda
