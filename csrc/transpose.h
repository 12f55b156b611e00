// Squares of 16 x 16 words in AVX-512 registers: transposed, and rows of them written as bf16.
#pragma once

#include "numbers.h"
#include "vector.h"

namespace pagoda {
namespace {

struct Words16 {
    Ints row[16];
};

// Words, then pairs, then quarters of registers change places.
inline void transpose(Words16& words) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        const __m512i even = reinterpret_cast<__m512i>(words.row[i]), odd = reinterpret_cast<__m512i>(words.row[i + 1]);
        a[i] = _mm512_unpacklo_epi32(even, odd);
        a[i + 1] = _mm512_unpackhi_epi32(even, odd);
    }
    for (int i = 0; i < 16; i += 4)
        for (int half = 0; half < 2; half++) {
            b[i + 2 * half] = _mm512_unpacklo_epi64(a[i + half], a[i + half + 2]);
            b[i + 2 * half + 1] = _mm512_unpackhi_epi64(a[i + half], a[i + half + 2]);
        }
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), high = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        words.row[i] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low, low2, 0x88));
        words.row[i + 4] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(high, high2, 0x88));
        words.row[i + 8] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(low, low2, 0xdd));
        words.row[i + 12] = reinterpret_cast<Ints>(_mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}

// 16 words of each of 16 rows, at a distance of `row_nbytes`, as 16 rows of words; rows from `rows` on are zero.
inline void transpose_words(const uint8_t* source, int64_t row_nbytes, int rows, uint8_t* target) {
    Words16 words;
    for (int row = 0; row < 16; row++) words.row[row] = row < rows ? load_words(source + row * row_nbytes) : Ints{};
    transpose(words);
    for (int row = 0; row < 16; row++) *reinterpret_cast<UnalignedInts*>(target + row * 64) = words.row[row];
}

// Rounds as bf16_of_float does.
inline __m256i bf16_of(Floats values) {
    const Ints bits = reinterpret_cast<Ints>(values);
    const Ints rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Ints halves = values == values ? rounded : Ints{} + 0x7fc0;
    return _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(halves));
}

inline void store_bf16(Bf16* target, Floats values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bf16_of(values));
}

}  // namespace
}  // namespace pagoda
