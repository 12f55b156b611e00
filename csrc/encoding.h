// How the codes of `formats/scaled.py` and `formats/int4.py` become bytes or bf16 words in the order of
// `formats/words.py`.
//
// Knows codes, a panel of 16 or 32 tokens at a time; does not know pages, scales or minima, which the scores and weights
// of the tokens take in. Codes are exact in bf16.
#pragma once

#include "product.h"

namespace pagoda {
namespace {

// Every code becomes a finite number: what lies behind the end of a sequence is multiplied by zero.
template <int kShift>
inline Floats floats_of_fp8(Ints codes, float unit) {
    const Floats magnitude = reinterpret_cast<Floats>((codes & 0x7f) << kShift) * unit;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (codes & 0x80) << 24);
}

// Codes in the low halves of words, two each.
template <Encoding kEncoding>
inline Pair floats_of_codes(Ints pairs) {
    if constexpr (kEncoding == Encoding::e4m3)
        return {floats_of_fp8<20>(pairs & 0xff, 0x1p120f), floats_of_fp8<20>(pairs >> 8, 0x1p120f)};
    else if constexpr (kEncoding == Encoding::e5m2)
        return {floats_of_fp8<21>(pairs & 0xff, 0x1p112f), floats_of_fp8<21>(pairs >> 8, 0x1p112f)};
    else
        return {__builtin_convertvector(pairs << 24 >> 24, Floats), __builtin_convertvector(pairs << 16 >> 24, Floats)};
}

inline void store_words(uint8_t* target, Ints words) { *reinterpret_cast<UnalignedInts*>(target) = words; }

template <Encoding kEncoding>
inline void store_pairs(uint8_t* target, Ints pairs) {
    const Pair pair = floats_of_codes<kEncoding>(pairs);
    const Ints even = reinterpret_cast<Ints>(pair.even), odd = reinterpret_cast<Ints>(pair.odd);
    store_words(target, (even >> 16 & 0xffff) | (odd & int32_t(0xffff0000)));
}

// Where a panel of codes lies: words of four in rows at a distance of `row_nbytes`, and as many bytes to ask for
// meanwhile.
struct CodedPanel {
    const uint8_t* codes;
    int64_t row_nbytes;
    int64_t rows;
    int64_t columns;
    const uint8_t* ahead;
};

inline void prefetch_row(const CodedPanel& panel, int64_t row) {
    const uint8_t* ahead = panel.ahead + row * panel.columns * 4;
    for (int64_t offset = 0; offset < panel.columns * 4; offset += kLineNbytes) prefetch(ahead + offset);
}

// A row of codes becomes two rows of words. Like all below, reads and writes up to a whole vector behind the last row:
// codes are followed by scales.
template <Encoding kEncoding>
void decode_panel(const CodedPanel& panel, uint8_t* target) {
    const int64_t target_nbytes = panel.columns * 4;
    for (int64_t row = 0; row < panel.rows; row++, target += 2 * target_nbytes) {
        prefetch_row(panel, row);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t offset = 0; offset < target_nbytes; offset += kLanes * 4)
            store_pairs<kEncoding>(target + offset, load_words(codes + offset) & 0xffff);
        for (int64_t offset = 0; offset < target_nbytes; offset += kLanes * 4)
            store_pairs<kEncoding>(target + target_nbytes + offset, load_words(codes + offset) >> 16 & 0xffff);
    }
}

// Bytes of two codes become bytes of one: what the low bits hold comes first, what the high bits hold `distance_nbytes`
// further. Low bits are written first where rows end in each other's room.
inline void unpack_row(const uint8_t* codes, int64_t nbytes, uint8_t* target, int64_t distance_nbytes) {
    for (int64_t offset = 0; offset < nbytes; offset += kLanes * 4)
        store_words(target + offset, load_words(codes + offset) & 0x0f0f0f0f);
    for (int64_t offset = 0; offset < nbytes; offset += kLanes * 4)
        store_words(target + distance_nbytes + offset, load_words(codes + offset) >> 4 & 0x0f0f0f0f);
}

// Rows of channels, the high bits' half a head behind the low bits'.
inline void unpack_keys(const CodedPanel& panel, uint8_t* target) {
    const int64_t row_nbytes = panel.columns * 4;
    for (int64_t row = 0; row < panel.rows; row++) {
        prefetch_row(panel, row);
        unpack_row(panel.codes + row * panel.row_nbytes, row_nbytes, target + row * row_nbytes,
                   panel.rows * row_nbytes);
    }
}

// Rows of tokens, whose channels of the high bits are the second half.
inline void unpack_values(const CodedPanel& panel, uint8_t* target) {
    const int64_t row_nbytes = panel.columns * 4;
    for (int64_t row = 0; row < panel.rows; row++) {
        prefetch_row(panel, row);
        unpack_row(panel.codes + row * panel.row_nbytes, row_nbytes, target + row * 2 * row_nbytes, row_nbytes);
    }
}

inline void decode(Encoding encoding, const CodedPanel& panel, uint8_t* target) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8:
        case Encoding::int4: return decode_panel<Encoding::int8>(panel, target);
        case Encoding::e4m3: return decode_panel<Encoding::e4m3>(panel, target);
        case Encoding::e5m2: return decode_panel<Encoding::e5m2>(panel, target);
    }
}

}  // namespace
}  // namespace pagoda
