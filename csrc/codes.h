// Rows of floats to codes and their scale, as `formats/scaled.py` and `formats/int4.py` define them, bit for bit.
//
// Functions are static for the reason in attention.h.
#pragma once

#include "numbers.h"

namespace pagoda {

// Of codes of four bits: `LARGEST_CODE` and the like.
constexpr float kLargestCode = 15.0f, kLargestStep = 16.0f, kLargestNumber = 119.0f;

static inline float larger_of(float a, float b) { return a > b ? a : b; }
static inline float within(float value, float lowest, float highest) {
    const float above = value > lowest ? value : lowest;
    return above < highest ? above : highest;
}

// Adding 1.5 * 2^23 rounds a small number to an integer, ties to even.
static inline float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

static inline float largest_code(Encoding encoding) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8: return 127.0f;
        case Encoding::e4m3: return 448.0f;
        case Encoding::e5m2: return 57344.0f;
        case Encoding::int4: return kLargestNumber;
    }
    return 1.0f;
}

constexpr Bf16 kNaN = 0x7fc0, kSmallestScale = 0x0080;

// The positive bf16 at or above a positive number.
static inline Bf16 bf16_above(float value) { return Bf16((bits_of_float(value) + 0xffff) >> 16); }

// How far down and up the numbers of a row reach, and zero.
struct Reaches {
    float lowest;
    float highest;
    bool all_finite;

    float span() const { return highest - lowest; }
};

static inline Reaches reaches_of(const float* values, int64_t width) {
    Reaches reaches{0.0f, 0.0f, true};
    for (int64_t i = 0; i < width; i++) {
        reaches.all_finite &= is_finite(values[i]);
        reaches.lowest = values[i] < reaches.lowest ? values[i] : reaches.lowest;
        reaches.highest = values[i] > reaches.highest ? values[i] : reaches.highest;
    }
    return reaches;
}

// Of a row: NaN if a number of it is not finite, never zero. The steps of a single group are its scale.
static inline Bf16 scale_of_row(const float* values, const Plane& plane) {
    const Reaches reaches = reaches_of(values, plane.width);
    const bool is_group = num_groups(plane) == 1;
    const float span = is_group ? reaches.span() : larger_of(reaches.highest, -reaches.lowest);
    if (!reaches.all_finite || !is_finite(span)) return kNaN;
    const Bf16 scale = bf16_above(span / (is_group ? kLargestCode : largest_code(plane.encoding)));
    return scale > kSmallestScale ? scale : kSmallestScale;
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

// A byte a code of rows that are not in groups.
static inline void encode_row(uint8_t* codes, const float* values, int64_t width, Encoding encoding, float divisor) {
    const float largest = largest_code(encoding);
    switch (encoding) {
        case Encoding::none:
        case Encoding::int4: break;
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

// A step and zero for a group of small integers, and the sum of squared errors with them.
struct GroupCoding {
    float step;
    float zero;
    float error;

    float code(float number) const { return within(rounded(number / step) + zero, 0.0f, kLargestCode); }
};

static inline GroupCoding coding_of(const float* numbers, int64_t count, const Reaches& reaches, float step) {
    const float middle = (kLargestCode - (reaches.highest + reaches.lowest) / step) / 2.0f;
    GroupCoding coding{step, within(rounded(middle), 0.0f, kLargestCode), 0.0f};
    for (int64_t i = 0; i < count; i++) {
        const float error = (coding.code(numbers[i]) - coding.zero) * step - numbers[i];
        coding.error += error * error;  // exact
    }
    return coding;
}

// A byte a code of the small integers of a group. Returns the byte of its step and zero.
static inline uint8_t encode_group(uint8_t* codes, const float* numbers, int64_t count, bool has_steps) {
    const Reaches reaches = reaches_of(numbers, count);
    const int32_t most = int32_t(reaches.span() + kLargestCode - 1.0f) / int32_t(kLargestCode);
    GroupCoding coding = coding_of(numbers, count, reaches, has_steps ? within(float(most), 1.0f, kLargestStep) : 1.0f);
    if (coding.step > 1.0f) {
        const GroupCoding less = coding_of(numbers, count, reaches, coding.step - 1.0f);
        if (less.error < coding.error) coding = less;
    }
    for (int64_t i = 0; i < count; i++) codes[i] = uint8_t(int32_t(coding.code(numbers[i])));
    return uint8_t(int32_t(coding.step) - 1 + int32_t(coding.zero) * 16);
}

// Two codes to a byte: the second half of the row goes into the high bits.
static inline void pack_nibbles(uint8_t* codes, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) codes[i] = uint8_t(codes[i] | codes[i + width / 2] << 4);
}

// Codes and the levels of all groups, as `formats/int4.py` has them. The row becomes small integers, in place.
static inline void encode_groups(uint8_t* codes, uint8_t* levels, float* values, const Plane& plane, float scale) {
    for (int64_t i = 0; i < plane.width; i++) values[i] = rounded(values[i] / scale);
    if (num_groups(plane) == 1) {
        levels[0] = encode_group(codes, values, plane.width, false);
    } else {
        const int64_t half = plane.width / 2, count = half_groups(plane);
        for (int64_t i = 0; i < 2 * count; i++) {
            const int64_t first = i % count * plane.group_channels, left = half - first;
            const int64_t channel = i / count * half + first;
            levels[i] = encode_group(codes + channel, values + channel,
                                     left < plane.group_channels ? left : plane.group_channels, true);
        }
    }
    pack_nibbles(codes, plane.width);
}

}  // namespace pagoda
