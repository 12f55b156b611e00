// Single numbers and rows of them: fp32, fp16 and bf16 to float and back, rounding to nearest, ties to even.
//
// In software, so that every instruction set gives the same bits. Functions are static for the reason in attention.h.
#pragma once

#include <cstddef>

#include "attention.h"

namespace pagoda {

typedef uint16_t Bf16;  // the upper half of a float
typedef uint16_t Fp16;

static inline float float_of_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of_bf16(Bf16 number) { return float_of_bits(uint32_t(number) << 16); }

static inline Bf16 bf16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    if (value != value) return 0x7fc0;
    return Bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Exponent and mantissa move into place; a product corrects the bias, and makes subnormals right.
static inline float float_of_fp16(Fp16 number) {
    const uint32_t magnitude = bits_of_float(float_of_bits(uint32_t(number & 0x7fff) << 13) * 0x1p112f);
    const uint32_t special = (number & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return float_of_bits(magnitude | special | uint32_t(number & 0x8000) << 16);
}

static inline Fp16 fp16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return Fp16(sign | 0x7e00);  // NaN
    if (magnitude >= 0x477ff000) return Fp16(sign | 0x7c00);  // rounds to infinity
    // A subnormal's last place is that of a float in [1/2, 1): the sum rounds it.
    if (magnitude < 0x38800000) return Fp16(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000));
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return Fp16(sign | (rounded - 0x38000000) >> 13);
}

static inline bool is_finite(float value) { return value - value == 0.0f; }

// Whether no number is NaN or infinite: the exponent of one that is has all bits set.
static inline bool is_finite_row(const uint8_t* source, Number number, int64_t width) {
    uint32_t any = 0;
    if (number == Number::fp32) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(source);
        for (int64_t i = 0; i < width; i++) any |= (words[i] & 0x7f800000u) == 0x7f800000u;
        return any == 0;
    }
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(source);
    const uint16_t exponent = number == Number::bf16 ? 0x7f80 : 0x7c00;
    for (int64_t i = 0; i < width; i++) any |= (halves[i] & exponent) == exponent;
    return any == 0;
}

static inline void read_row(float* target, const uint8_t* source, Number number, int64_t width) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(source);
    switch (number) {
        case Number::fp32: __builtin_memcpy(target, source, size_t(width) * 4); break;
        case Number::fp16:
            for (int64_t i = 0; i < width; i++) target[i] = float_of_fp16(halves[i]);
            break;
        case Number::bf16:
            for (int64_t i = 0; i < width; i++) target[i] = float_of_bf16(halves[i]);
            break;
    }
}

static inline void write_row(uint8_t* target, Number number, const float* source, int64_t width) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(target);
    switch (number) {
        case Number::fp32: __builtin_memcpy(target, source, size_t(width) * 4); break;
        case Number::fp16:
            for (int64_t i = 0; i < width; i++) halves[i] = fp16_of_float(source[i]);
            break;
        case Number::bf16:
            for (int64_t i = 0; i < width; i++) halves[i] = bf16_of_float(source[i]);
            break;
    }
}

}  // namespace pagoda
