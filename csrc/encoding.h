// How the codes of `formats/scaled.py` and `formats/int4.py` become bf16 words in the order of `formats/words.py`.
//
// Knows codes, a panel of 16 or 32 tokens at a time; does not know pages, scales or minima, which the scores and weights
// of the tokens take in. Codes are exact in bf16. Those of four bits come out with kNibbleOffset added, which is one OR.
#pragma once

#include "product.h"

namespace pagoda {
namespace {

typedef uint16_t UnalignedHalves __attribute__((vector_size(kLanes * 2), aligned(1), may_alias));
typedef uint8_t UnalignedBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

// As bf16, whose last place is one at this size.
constexpr float kNibbleOffset = 128.0f;
constexpr int32_t kNibbleOffsetWord = 0x43004300;

inline Ints load_halves(const uint8_t* data) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data))));
#else
    return __builtin_convertvector(*reinterpret_cast<const UnalignedHalves*>(data), Ints);
#endif
}

inline Ints load_bytes(const uint8_t* data) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data))));
#else
    return __builtin_convertvector(*reinterpret_cast<const UnalignedBytes*>(data), Ints);
#endif
}

// Every code becomes a finite number: what lies behind the end of a sequence is multiplied by zero.
template <int kShift>
inline Floats floats_of_fp8(Ints codes, float unit) {
    const Floats magnitude = reinterpret_cast<Floats>((codes & 0x7f) << kShift) * unit;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (codes & 0x80) << 24);
}

template <Encoding kEncoding>
inline Pair floats_of_codes(Ints pairs) {
    if constexpr (kEncoding == Encoding::int8)
        return {__builtin_convertvector(pairs << 24 >> 24, Floats), __builtin_convertvector(pairs << 16 >> 24, Floats)};
    else if constexpr (kEncoding == Encoding::e4m3)
        return {floats_of_fp8<20>(pairs & 0xff, 0x1p120f), floats_of_fp8<20>(pairs >> 8, 0x1p120f)};
    else
        return {floats_of_fp8<21>(pairs & 0xff, 0x1p112f), floats_of_fp8<21>(pairs >> 8, 0x1p112f)};
}

inline void store_words(uint8_t* target, Ints words) { *reinterpret_cast<UnalignedInts*>(target) = words; }

// A vector of words from as many pairs of codes.
template <Encoding kEncoding>
inline void decode_pairs(const uint8_t* codes, uint8_t* target) {
#if defined(__AVX512BF16__)
    if constexpr (kEncoding == Encoding::int8) {
        const __m128i* bytes = reinterpret_cast<const __m128i*>(codes);
        const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
        const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1)));
        return store_words(target, reinterpret_cast<Ints>(_mm512_cvtne2ps_pbh(high, low)));
    }
#endif
    const Pair pair = floats_of_codes<kEncoding>(load_halves(codes));
    const Ints even = reinterpret_cast<Ints>(pair.even), odd = reinterpret_cast<Ints>(pair.odd);
    store_words(target, (even >> 16 & 0xffff) | (odd & int32_t(0xffff0000)));
}

// Where a panel of codes lies: rows at a distance of `row_nbytes`, and as many bytes to ask for meanwhile.
struct CodedPanel {
    const uint8_t* codes;
    int64_t row_nbytes;
    const uint8_t* ahead;
};

inline void prefetch_row(const uint8_t* ahead, int64_t nbytes) {
    for (int64_t offset = 0; offset < nbytes; offset += kLineNbytes) prefetch(ahead + offset);
}

// Rows of `columns` pairs. Like all below, reads and writes up to a whole vector behind the last row: codes are
// followed by scales.
template <Encoding kEncoding>
void decode_panel(const CodedPanel& panel, int64_t rows, int64_t columns, uint8_t* target) {
    for (int64_t row = 0; row < rows; row++, target += columns * 4) {
        prefetch_row(panel.ahead + row * columns * 2, columns * 2);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t column = 0; column < columns; column += kLanes)
            decode_pairs<kEncoding>(codes + column * 2, target + column * 4);
    }
}

// Rows of pairs of channels: a byte is a pair.
inline void decode_nibble_keys(const CodedPanel& panel, int64_t rows, int64_t tokens, uint8_t* target) {
    for (int64_t row = 0; row < rows; row++, target += tokens * 4) {
        prefetch_row(panel.ahead + row * tokens, tokens);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t token = 0; token < tokens; token += kLanes) {
            const Ints pairs = load_bytes(codes + token);
            store_words(target + token * 4, (pairs & 0xf) | (pairs >> 4 << 16) | kNibbleOffsetWord);
        }
    }
}

// Rows of pairs of tokens: a half holds a channel of both and one half a row further, which is written second since the
// first may end in its room.
inline void decode_nibble_values(const CodedPanel& panel, int64_t rows, int64_t width, uint8_t* target) {
    for (int64_t row = 0; row < rows; row++, target += width * 4) {
        prefetch_row(panel.ahead + row * width, width);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t channel = 0; channel < width / 2; channel += kLanes) {
            const Ints pairs = load_halves(codes + channel * 2);
            store_words(target + channel * 4, (pairs & 0xf) | (pairs & 0xf00) << 8 | kNibbleOffsetWord);
        }
        for (int64_t channel = 0; channel < width / 2; channel += kLanes) {
            const Ints pairs = load_halves(codes + channel * 2) >> 4;
            store_words(target + (width / 2 + channel) * 4, (pairs & 0xf) | (pairs & 0xf00) << 8 | kNibbleOffsetWord);
        }
    }
}

inline void decode_keys(Encoding encoding, const CodedPanel& panel, int64_t rows, int64_t tokens, uint8_t* target) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8: return decode_panel<Encoding::int8>(panel, rows, tokens, target);
        case Encoding::e4m3: return decode_panel<Encoding::e4m3>(panel, rows, tokens, target);
        case Encoding::e5m2: return decode_panel<Encoding::e5m2>(panel, rows, tokens, target);
        case Encoding::int4: return decode_nibble_keys(panel, rows, tokens, target);
    }
}

inline void decode_values(Encoding encoding, const CodedPanel& panel, int64_t rows, int64_t width, uint8_t* target) {
    if (encoding == Encoding::int4) return decode_nibble_values(panel, rows, width, target);
    decode_keys(encoding, panel, rows, width, target);
}

}  // namespace
}  // namespace pagoda
