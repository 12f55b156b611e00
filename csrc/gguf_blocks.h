// The blocks that GGUF files keep rows of weights in, read as codes, scales and minima (ggml-common.h of llama.cpp).
//
// Knows one row at a time, and not how it is laid out afterwards.
#pragma once

#include "coding.h"
#include "numbers.h"

namespace pagoda {

enum class GgufType { q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs };

// A row, as a coding has it: `codes` [depth], `scales` and `minima` [superunits], `parts` and `part_minima` [units x
// num_parts].
struct CodedRow {
    uint8_t* codes;
    float* scales;
    float* minima;
    int8_t* parts;
    int8_t* part_minima;
};

namespace gguf {

constexpr int64_t kShortDepth = 32;
constexpr int64_t kLongDepth = 256;

struct Form {
    Coding coding;
    int64_t depth;   // of a block
    int64_t nbytes;
};

constexpr Coding short_coding(int bits, int zero, bool has_minimum) {
    return {bits, zero, 0, has_minimum, false, 1, Number::fp16, false};
}

constexpr Coding long_coding(int bits, int zero, int num_parts, bool has_minimum) {
    return {bits, zero, num_parts, has_minimum, false, kLongDepth / kUnitDepth, Number::fp16, false};
}

static inline Form form_of(GgufType type) {
    switch (type) {
        case GgufType::q4_0: return {short_coding(4, 8, false), kShortDepth, 18};
        case GgufType::q4_1: return {short_coding(4, 0, true), kShortDepth, 20};
        case GgufType::q5_0: return {short_coding(5, 16, false), kShortDepth, 22};
        case GgufType::q5_1: return {short_coding(5, 0, true), kShortDepth, 24};
        case GgufType::q8_0: return {short_coding(8, 128, false), kShortDepth, 34};
        case GgufType::q2_k: return {long_coding(2, 0, 2, true), kLongDepth, 84};
        case GgufType::q3_k: return {long_coding(3, 4, 2, false), kLongDepth, 110};
        case GgufType::q4_k: return {long_coding(4, 0, 1, true), kLongDepth, 144};
        case GgufType::q5_k: return {long_coding(5, 0, 1, true), kLongDepth, 176};
        case GgufType::q6_k: return {long_coding(6, 32, 2, false), kLongDepth, 210};
        case GgufType::iq4_nl: return {{4, 128, 0, false, true, 1, Number::fp16, false}, kShortDepth, 18};
        default: return {{4, 128, 1, false, true, kLongDepth / kUnitDepth, Number::fp16, false}, kLongDepth, 136};
    }
}

static inline float read_half(const uint8_t* data) { return float_of_fp16(Fp16(data[0] | data[1] << 8)); }

static inline uint32_t read_word(const uint8_t* data) {
    return data[0] | data[1] << 8 | data[2] << 16 | uint32_t(data[3]) << 24;
}

// 16 bytes of two codes each: the low halves come first.
static inline void read_nibbles(const uint8_t* data, int64_t count, uint8_t* codes) {
    for (int64_t i = 0; i < count; i++) {
        codes[i] = data[i] & 15;
        codes[count + i] = data[i] >> 4;
    }
}

// Of Q4_0, Q4_1, Q5_0 and Q5_1. What GGUF adds to codes is taken away here.
static inline void read_short(const uint8_t* data, const Coding& coding, const CodedRow& row) {
    row.scales[0] = read_half(data);
    data += 2;
    if (coding.has_minimum) {
        row.minima[0] = -read_half(data);
        data += 2;
    }
    const uint32_t high = coding.bits == 5 ? read_word(data) : 0;
    read_nibbles(data + (coding.bits == 5 ? 4 : 0), kShortDepth / 2, row.codes);
    for (int64_t i = 0; high != 0 && i < kShortDepth; i++) row.codes[i] |= uint8_t((high >> i & 1) << 4);
}

static inline void read_q8_0(const uint8_t* data, const CodedRow& row) {
    row.scales[0] = read_half(data);
    for (int64_t i = 0; i < kShortDepth; i++) row.codes[i] = data[2 + i] ^ 0x80;
}

// Eight scales and minima of six bits each.
static inline void read_k_scales(const uint8_t* data, const CodedRow& row) {
    for (int64_t i = 0; i < 4; i++) {
        row.parts[i] = int8_t(data[i] & 63);
        row.part_minima[i] = int8_t(data[i + 4] & 63);
        row.parts[i + 4] = int8_t((data[i + 8] & 15) | data[i] >> 6 << 4);
        row.part_minima[i + 4] = int8_t(data[i + 8] >> 4 | data[i + 4] >> 6 << 4);
    }
}

// Of Q4_K and Q5_K.
static inline void read_q4_or_q5_k(const uint8_t* data, bool has_high, const CodedRow& row) {
    row.scales[0] = read_half(data);
    row.minima[0] = read_half(data + 2);
    read_k_scales(data + 4, row);
    const uint8_t *high = data + 16, *low = has_high ? high + 32 : high;
    for (int64_t unit = 0; unit < kLongDepth / kUnitDepth; unit += 2) {
        uint8_t* codes = row.codes + unit * kUnitDepth;
        read_nibbles(low + unit * kUnitDepth / 2, kUnitDepth, codes);
        for (int64_t i = 0; has_high && i < kUnitDepth; i++) {
            codes[i] |= uint8_t((high[i] >> unit & 1) << 4);
            codes[kUnitDepth + i] |= uint8_t((high[i] >> (unit + 1) & 1) << 4);
        }
    }
}

// Pairs of bits: 32 bytes have those of four units, the first of them lowest.
static inline void read_pairs(const uint8_t* data, uint8_t* codes) {
    for (int64_t unit = 0; unit < kLongDepth / kUnitDepth; unit++)
        for (int64_t i = 0; i < kUnitDepth; i++)
            codes[unit * kUnitDepth + i] = data[unit / 4 * kUnitDepth + i] >> (unit % 4 * 2) & 3;
}

static inline void read_q2_k(const uint8_t* data, const CodedRow& row) {
    for (int64_t i = 0; i < 16; i++) {
        row.parts[i] = int8_t(data[i] & 15);
        row.part_minima[i] = int8_t(data[i] >> 4);
    }
    read_pairs(data + 16, row.codes);
    row.scales[0] = read_half(data + 80);
    row.minima[0] = read_half(data + 82);
}

static inline void read_q3_k(const uint8_t* data, const CodedRow& row) {
    const uint8_t *high = data, *scales = data + 96;
    read_pairs(data + 32, row.codes);
    for (int64_t unit = 0; unit < kLongDepth / kUnitDepth; unit++)
        for (int64_t i = 0; i < kUnitDepth; i++)
            row.codes[unit * kUnitDepth + i] |= uint8_t((high[i] >> unit & 1) << 2);
    for (int64_t i = 0; i < 16; i++) {
        const int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
        row.parts[i] = int8_t((low | (scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32);
    }
    row.scales[0] = read_half(data + 108);
}

static inline void read_q6_k(const uint8_t* data, const CodedRow& row) {
    for (int64_t unit = 0; unit < kLongDepth / kUnitDepth; unit++) {
        const int64_t half = unit / 4, quarter = unit % 4;
        const uint8_t *low = data + half * 64 + quarter % 2 * kUnitDepth, *high = data + 128 + half * kUnitDepth;
        for (int64_t i = 0; i < kUnitDepth; i++)
            row.codes[unit * kUnitDepth + i] = uint8_t((low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4);
    }
    for (int64_t i = 0; i < 16; i++) row.parts[i] = int8_t(data[192 + i]);
    row.scales[0] = read_half(data + 208);
}

static inline void read_iq4_nl(const uint8_t* data, const CodedRow& row) {
    row.scales[0] = read_half(data);
    read_nibbles(data + 2, kShortDepth / 2, row.codes);
}

static inline void read_iq4_xs(const uint8_t* data, const CodedRow& row) {
    row.scales[0] = read_half(data);
    const int high = data[2] | data[3] << 8;
    for (int64_t unit = 0; unit < kLongDepth / kUnitDepth; unit++) {
        const int low = data[4 + unit / 2] >> (unit % 2 * 4) & 15;
        row.parts[unit] = int8_t((low | (high >> (2 * unit) & 3) << 4) - 32);
        read_nibbles(data + 8 + unit * kUnitDepth / 2, kUnitDepth / 2, row.codes + unit * kUnitDepth);
    }
}

// One block of a row.
static inline void read_block(GgufType type, const uint8_t* data, const Coding& coding, const CodedRow& row) {
    switch (type) {
        case GgufType::q8_0: return read_q8_0(data, row);
        case GgufType::q2_k: return read_q2_k(data, row);
        case GgufType::q3_k: return read_q3_k(data, row);
        case GgufType::q4_k: return read_q4_or_q5_k(data, false, row);
        case GgufType::q5_k: return read_q4_or_q5_k(data, true, row);
        case GgufType::q6_k: return read_q6_k(data, row);
        case GgufType::iq4_nl: return read_iq4_nl(data, row);
        case GgufType::iq4_xs: return read_iq4_xs(data, row);
        default: return read_short(data, coding, row);
    }
}

}  // namespace gguf
}  // namespace pagoda
