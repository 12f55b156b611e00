// Rows of floats to codes with one scale, as `formats/scaled.py` and `formats/int4.py` define them, bit for bit.
//
// Functions are static for the reason in attention.h.
#pragma once

#include "numbers.h"

namespace pagoda {

static inline float largest_code(Encoding encoding) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8: return 127.0f;
        case Encoding::e4m3: return 448.0f;
        case Encoding::e5m2: return 57344.0f;
        case Encoding::int4: return 15.0f;
    }
    return 1.0f;
}

constexpr Bf16 kNaN = 0x7fc0, kSmallestScale = 0x0080;

// The positive bf16 at or above a positive number.
static inline Bf16 bf16_above(float value) { return Bf16((bits_of_float(value) + 0xffff) >> 16); }

// The bf16 at or below a number.
static inline Bf16 bf16_below(float value) {
    return Bf16((bits_of_float(value) + (value < 0.0f ? 0xffff : 0)) >> 16);
}

// What turns codes back into numbers: number = minimum + scale x code, where only codes of four bits have a minimum.
struct Levels {
    Bf16 scale;  // NaN if a number of the row is not finite, never zero
    Bf16 minimum;
};

static inline Levels levels_of_row(const float* values, int64_t width, Encoding encoding) {
    float lowest = values[0], highest = values[0];
    bool all_finite = true;
    for (int64_t i = 0; i < width; i++) {
        all_finite &= is_finite(values[i]);
        lowest = values[i] < lowest ? values[i] : lowest;
        highest = values[i] > highest ? values[i] : highest;
    }
    Levels levels{kNaN, 0};
    float span = highest > -lowest ? highest : -lowest;
    if (has_minima(encoding)) {
        const Bf16 minimum = bf16_below(lowest);
        span = highest - float_of_bf16(minimum);
        if (all_finite && is_finite(span)) levels.minimum = minimum;
    }
    if (!all_finite || !is_finite(span)) return levels;
    const Bf16 scale = bf16_above(span / largest_code(encoding));
    levels.scale = scale > kSmallestScale ? scale : kSmallestScale;
    return levels;
}

// A quotient in the range of its codes to the nearest one, ties to even. Below the smallest normal code the sum with a
// number whose last place is the code's step rounds it.
static inline uint8_t code_of_e4m3(float value) {
    const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
    const uint32_t sign = bits >> 24 & 0x80;
    if (magnitude < 0x3c800000)
        return uint8_t(sign | (bits_of_float(float_of_bits(magnitude) + 16384.0f) - bits_of_float(16384.0f)));
    const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    return uint8_t(sign | ((rounded >> 20) - (120 << 3)));
}

static inline uint8_t code_of_e5m2(float value) {
    const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
    const uint32_t sign = bits >> 24 & 0x80;
    if (magnitude < 0x38800000)
        return uint8_t(sign | (bits_of_float(float_of_bits(magnitude) + 128.0f) - bits_of_float(128.0f)));
    const uint32_t rounded = magnitude + 0xfffff + (magnitude >> 21 & 1);
    return uint8_t(sign | ((rounded >> 21) - (112 << 2)));
}

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
static inline uint8_t code_of_int8(float value) { return uint8_t(bits_of_float(value + 12582912.0f)); }

static inline float bounded(float value, float largest) {
    const float above = value > -largest ? value : -largest;
    return above < largest ? above : largest;
}

// A byte a code, whatever its bits.
static inline void encode_row(uint8_t* codes, const float* values, int64_t width, Encoding encoding, Levels levels) {
    const float divisor = float_of_bf16(levels.scale), minimum = float_of_bf16(levels.minimum);
    const float largest = largest_code(encoding);
    if (divisor != divisor) {
        __builtin_memset(codes, 0, size_t(width));
        return;
    }
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8:
            for (int64_t i = 0; i < width; i++) codes[i] = code_of_int8(bounded(values[i] / divisor, largest));
            break;
        case Encoding::e4m3:
            for (int64_t i = 0; i < width; i++) codes[i] = code_of_e4m3(bounded(values[i] / divisor, largest));
            break;
        case Encoding::e5m2:
            for (int64_t i = 0; i < width; i++) codes[i] = code_of_e5m2(bounded(values[i] / divisor, largest));
            break;
        case Encoding::int4:
            for (int64_t i = 0; i < width; i++) codes[i] = code_of_int8(bounded((values[i] - minimum) / divisor, largest));
            break;
    }
}

// Two codes to a byte: the second half of the row goes into the high bits.
static inline void pack_nibbles(uint8_t* codes, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) codes[i] = uint8_t(codes[i] | codes[i + width / 2] << 4);
}

}  // namespace pagoda
