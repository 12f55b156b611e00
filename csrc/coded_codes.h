// The codes of a unit of coded weights, step by step: a byte for each of kLanes rows times four numbers.
//
// Shifts are of 16 bits, where masks take away what crosses from one byte into the other.
#pragma once

#include "coding.h"
#include "vector.h"

namespace pagoda {
namespace {

typedef uint16_t Shorts __attribute__((vector_size(kLanes * 4)));
typedef uint16_t UnalignedShorts __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

constexpr int64_t kBlockVectors = kCodedRows / kLanes;

inline Shorts load_plane(const uint8_t* data) { return *reinterpret_cast<const UnalignedShorts*>(data); }
inline void store_plane(uint8_t* data, Shorts plane) { *reinterpret_cast<UnalignedShorts*>(data) = plane; }
inline Shorts each_byte(uint8_t value) { return Shorts{} + uint16_t(value << 8 | value); }

// Those in places [first, first + width) of every byte, moved to place `to`.
inline Shorts bits_of(Shorts plane, int first, int width, int to) {
    const Shorts moved = first >= to ? plane >> (first - to) : plane << (to - first);
    return moved & each_byte(uint8_t(((1 << width) - 1) << to));
}

inline Shorts nibbles(const uint8_t* data, int64_t step) {
    return bits_of(load_plane(data + step % kHalfSteps * kPlaneNbytes), step < kHalfSteps ? 0 : 4, 4, 0);
}

inline Shorts pairs(const uint8_t* data, int64_t step, int to) {
    return bits_of(load_plane(data + step / kHalfSteps * kPlaneNbytes), int(step % kHalfSteps) * 2, 2, to);
}

inline Shorts single_bits(const uint8_t* data, int64_t step, int to) { return bits_of(load_plane(data), int(step), 1, to); }

inline Shorts looked_up(Shorts codes) {
#if defined(__AVX512BW__)
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodeTable)));
    return reinterpret_cast<Shorts>(_mm512_shuffle_epi8(table, reinterpret_cast<__m512i>(codes)));
#elif defined(__AVX2__)
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodeTable)));
    return reinterpret_cast<Shorts>(_mm256_shuffle_epi8(table, reinterpret_cast<__m256i>(codes)));
#else
    for (int i = 0; i < kLanes * 2; i++)
        codes[i] = uint16_t(kCodeTable[codes[i] & 0xff] | kCodeTable[codes[i] >> 8] << 8);
    return codes;
#endif
}

// Codes of so many bits as they lie in a unit, `data` being those of its first row of the vector. kMost is the largest.
template <int kBits, bool kHasTable = false>
struct PackedCodes {
    static constexpr int kMost = kHasTable ? 255 : (1 << kBits) - 1;

    static Shorts step(const uint8_t* data, int64_t step) {
        constexpr int64_t kHigh = (kBits > 4 ? 4 : 2) * kPlaneNbytes;
        if (kBits == 8) return load_plane(data + step * kPlaneNbytes);
        if (kBits == 2) return pairs(data, step, 0);
        if (kBits == 3) return pairs(data, step, 0) | single_bits(data + kHigh, step, 2);
        const Shorts low = nibbles(data, step);
        if (kBits == 5) return low | single_bits(data + kHigh, step, 4);
        if (kBits == 6) return low | pairs(data + kHigh, step, 4);
        return kHasTable ? looked_up(low) : low;
    }
};

// Codes unpacked before, a byte each, which are at most kMostCode.
template <int kMostCode>
struct PlainCodes : PackedCodes<8> {
    static constexpr int kMost = kMostCode;
};

}  // namespace
}  // namespace pagoda
