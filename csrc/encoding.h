// How the codes of `formats/scaled.py` become bf16 words in the order of `formats/words.py`: a panel at a time.
//
// Knows codes and scales; does not know pages. Codes are exact in bf16. Keys stay codes, and their scores are scaled;
// values are scaled here, since weights are rounded to bf16 and should sum to one before that.
#pragma once

#include "product.h"

namespace pagoda {
namespace {

typedef uint16_t UnalignedHalves __attribute__((vector_size(kLanes * 2), aligned(1), may_alias));

// Two codes to an element: the lower byte comes first along the summed axis.
inline Ints load_codes(const uint8_t* data) {
    return __builtin_convertvector(*reinterpret_cast<const UnalignedHalves*>(data), Ints);
}

inline Floats floats_of_e4m3(Ints codes) {
    const Ints magnitude = codes & 0x7f;
    const Floats value = reinterpret_cast<Floats>(magnitude << 20) * 0x1p120f;
    const Ints special = (magnitude == 0x7f) & 0x7fc00000;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(value) | special | (codes & 0x80) << 24);
}

template <Encoding kEncoding>
Pair floats_of_codes(Ints pairs) {
    if constexpr (kEncoding == Encoding::int8)
        return {__builtin_convertvector(pairs << 24 >> 24, Floats), __builtin_convertvector(pairs << 16 >> 24, Floats)};
    else if constexpr (kEncoding == Encoding::e4m3)
        return {floats_of_e4m3(pairs & 0xff), floats_of_e4m3(pairs >> 8)};
    else
        return {floats_of_halves(pairs << 8 & 0xff00), floats_of_halves(pairs & 0xff00)};
}

// The upper halves of both numbers; half a unit is added first where they are not exact.
inline void store_words(uint8_t* target, const Pair& pair, int32_t half_unit) {
    const Ints even = reinterpret_cast<Ints>(pair.even) + half_unit, odd = reinterpret_cast<Ints>(pair.odd) + half_unit;
    *reinterpret_cast<UnalignedInts*>(target) = (even >> 16 & 0xffff) | (odd & int32_t(0xffff0000));
}

// Where a panel of codes lies: rows at a distance of `row_nbytes`, and as many bytes to ask for meanwhile.
struct CodedPanel {
    const uint8_t* codes;
    int64_t row_nbytes;
    const uint8_t* ahead;
};

// Rows are pairs of channels, columns `tokens`.
template <Encoding kEncoding>
void decode_key_panel(const CodedPanel& panel, int64_t rows, int64_t tokens, uint8_t* target) {
    for (int64_t row = 0; row < rows; row++, target += tokens * 4) {
        prefetch(panel.ahead + row * tokens * 2);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t token = 0; token < tokens; token += kLanes)
            store_words(target + token * 4, floats_of_codes<kEncoding>(load_codes(codes + token * 2)), 0);
    }
}

// Rows are pairs of tokens, columns `width` channels. Writes and reads up to a whole vector behind the last row: codes
// are followed by scales. `scales` has one for each token, and zero for one that must come out as zero.
template <Encoding kEncoding>
void decode_value_panel(const CodedPanel& panel, int64_t tokens, int64_t width, const float* scales, uint8_t* target) {
    for (int64_t row = 0; row < tokens / 2; row++, target += width * 4) {
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t offset = 0; offset < width * 2; offset += kLineNbytes)
            prefetch(panel.ahead + row * panel.row_nbytes + offset);
        const Floats first = splat(scales[2 * row]), second = splat(scales[2 * row + 1]);
        const Ints has_first = first != 0.0f, has_second = second != 0.0f;
        for (int64_t channel = 0; channel < width; channel += kLanes) {
            const Pair pair = floats_of_codes<kEncoding>(load_codes(codes + channel * 2));
            const Ints even = reinterpret_cast<Ints>(pair.even * first) & has_first;
            const Ints odd = reinterpret_cast<Ints>(pair.odd * second) & has_second;
            store_words(target + channel * 4, {reinterpret_cast<Floats>(even), reinterpret_cast<Floats>(odd)}, 0x8000);
        }
    }
}

inline void decode_keys(Encoding encoding, const CodedPanel& panel, int64_t rows, int64_t tokens, uint8_t* target) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8: return decode_key_panel<Encoding::int8>(panel, rows, tokens, target);
        case Encoding::e4m3: return decode_key_panel<Encoding::e4m3>(panel, rows, tokens, target);
        case Encoding::e5m2: return decode_key_panel<Encoding::e5m2>(panel, rows, tokens, target);
    }
}

inline void decode_values(Encoding encoding, const CodedPanel& panel, int64_t tokens, int64_t width,
                          const float* scales, uint8_t* target) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8: return decode_value_panel<Encoding::int8>(panel, tokens, width, scales, target);
        case Encoding::e4m3: return decode_value_panel<Encoding::e4m3>(panel, tokens, width, scales, target);
        case Encoding::e5m2: return decode_value_panel<Encoding::e5m2>(panel, tokens, width, scales, target);
    }
}

}  // namespace
}  // namespace pagoda
