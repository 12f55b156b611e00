// Rows of floats to codes with one scale, as `formats/scaled.py` defines them, bit for bit.
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
    }
    return 1.0f;
}

// The largest magnitude over the largest code, rounded up to bf16; NaN if a number is not finite, never zero.
static inline Bf16 scale_of_row(const float* values, int64_t width, Encoding encoding) {
    float largest = 0.0f;
    bool is_finite = true;
    for (int64_t i = 0; i < width; i++) {
        const float magnitude = values[i] < 0.0f ? -values[i] : values[i];
        is_finite &= magnitude <= 3.4028234663852886e38f;
        largest = magnitude > largest ? magnitude : largest;
    }
    constexpr Bf16 kNaN = 0x7fc0, kSmallest = 0x0080;
    if (!is_finite) return kNaN;
    const Bf16 scale = Bf16((bits_of_float(largest / largest_code(encoding)) + 0xffff) >> 16);
    return scale > kSmallest ? scale : kSmallest;
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

static inline void encode_row(uint8_t* codes, const float* values, int64_t width, Encoding encoding, Bf16 scale) {
    const float divisor = float_of_bf16(scale), largest = largest_code(encoding);
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
    }
}

}  // namespace pagoda
