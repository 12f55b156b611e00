// Rows of input as codes of 8 bits, with a scale for each row and unit, as llama.cpp does: how they are made, and where
// those are that enter a unit.
#pragma once

#include "coded_codes.h"
#include "pointwise.h"

namespace pagoda {
namespace {

constexpr float kMostInputCode = 127.0f;

// Without an instruction that adds up four products of bytes, products of 8-bit codes are those of 16 bits: numbers 0
// and 2 of a step, then 1 and 3, are a word each.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr bool kMultipliesShorts = true;
#else
constexpr bool kMultipliesShorts = false;
#endif

// Rows of input that meet a block at a time: their sums fit into registers. For more rows than kUnpackedRows, codes are
// unpacked once for all of them, those of so many blocks at a time. Where registers are many a word of input is read once
// for two vectors of columns then.
constexpr int kPackedRows = kLanes == 16 ? 8 : 4;
constexpr int64_t kUnpackedRows = 2 * kPackedRows;
#if defined(__AVX512VNNI__)
constexpr int kTileRows = 6, kUnpackedBlocks = kMostUnpackedBlocks, kUnpackedJoint = 2;
#else
constexpr int kTileRows = kPackedRows, kUnpackedBlocks = 1, kUnpackedJoint = 1;
#endif

// Rows that lie side by side in `CodedRows`.
inline int64_t rows_of_groups(int64_t rows) {
    const int64_t most = rows <= kUnpackedRows ? kPackedRows : kTileRows;
    return rows < most ? rows : most;
}

// Rows of input from `row` on, all of one group, as they enter a unit.
struct InputUnit {
    const int8_t* codes;
    const float* scales;
    const float* terms;
    const int32_t* starts;
    int64_t rows;  // of the group

    InputUnit(const CodedCall& call, int64_t unit, int64_t row, int64_t nbytes) : rows(rows_of_groups(call.rows)) {
        const int64_t before = row / rows * num_units(call.depth) + unit, own = row % rows;
        codes = call.coded.codes + (before * rows + own) * nbytes;
        scales = call.coded.scales + before * rows + own;
        terms = call.coded.terms + before * 2 * rows + own;
        starts = call.coded.starts + before * 2 * rows + own;
    }

    void advance(int64_t nbytes) {
        codes += rows * nbytes;
        scales += rows;
        terms += 2 * rows;
        starts += 2 * rows;
    }
};

// Whether input codes are 16 bits wide, in the order of `kMultipliesShorts`.
inline bool codes_are_shorts(const Coding& coding) {
    return kMultipliesShorts && (coding.bits == 8 || coding.has_table);
}

// Units whose largest number is smaller are zeros: their scales would have lost places.
constexpr float kLeastInput = 0x1p-100f;

typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef int8_t UnalignedBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

inline int32_t sum_of_lanes(Ints values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(values));
#else
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; lane++) sum += values[lane];
    return sum;
#endif
}

// Codes a unit: to the nearest of 255 levels, ties to even, the largest of which is the largest number. Numbers are
// divided, which leaves compilers no product to fuse: all instruction sets give the same codes. NaN makes the scale NaN.
inline void code_unit(const float* values, int8_t (&codes)[kUnitDepth], float& scale, int32_t (&sums)[2]) {
    Floats sizes{};
    Ints are_nan{};
    for (int64_t i = 0; i < kUnitDepth; i += kLanes) {
        const Floats some = load(values + i);
        sizes = maximum(reinterpret_cast<Floats>(reinterpret_cast<Ints>(some) & 0x7fffffff), sizes);
        are_nan |= some != some;
    }
    const float most = horizontal_maximum(sizes), step = most / kMostInputCode;
    scale = sum_of_lanes(are_nan) != 0 ? __builtin_nanf("") : most < kLeastInput ? 0.0f : step;
    const Floats rounding = splat(12582912.0f);  // 1.5 x 2^23: a sum with it has no places behind the point
    Ints totals[2]{};
    for (int64_t i = 0; i < kUnitDepth; i += kLanes) {
        const Floats rounded = load(values + i) / splat(step) + rounding;
        const Ints wide = reinterpret_cast<Ints>(rounded) - reinterpret_cast<Ints>(rounding);
        *reinterpret_cast<UnalignedBytes*>(codes + i) = __builtin_convertvector(wide, Bytes);
        totals[i / (kUnitDepth / 2)] += wide << 24 >> 24;  // what the byte holds, if it was NaN too
    }
    for (int half = 0; half < 2; half++) sums[half] = sum_of_lanes(totals[half]);
}

// Rows [first, last) of the input. Behind its depth come zeros. A weight's minimum counts as often as the input's sum,
// its zero as the sum of codes, which its sums begin with: of each half where these have parts of their own, else of both.
inline void code_rows(const CodedCall& call, int64_t first, int64_t last) {
    const int64_t units = num_units(call.depth), nbytes = number_nbytes(call.number);
    const int64_t group = rows_of_groups(call.rows);
    for (int64_t row = first; row < last; row++)
        for (int64_t unit = 0; unit < units; unit++) {
            const int64_t left = call.depth - unit * kUnitDepth, before = row / group * units + unit;
            const int64_t index = before * group + row % group;
            alignas(64) float values[kUnitDepth]{};
            int8_t codes[kUnitDepth];
            int32_t sums[2];
            const uint8_t* input = call.input + (row * call.depth + unit * kUnitDepth) * nbytes;
            if (left < kUnitDepth)
                read_row(values, input, call.number, left);
            else
                read_row(values, input, call.number, kUnitDepth);  // of a length that the compiler knows
            code_unit(values, codes, call.coded.scales[index], sums);
            if (call.coding.num_parts < 2) sums[0] += sums[1];
            for (int half = 0; half < 2; half++) {
                const int64_t own = (before * 2 + half) * group + row % group;
                call.coded.terms[own] = call.coded.scales[index] * float(sums[half]);
                call.coded.starts[own] = call.coding.has_minimum ? 0 : -call.coding.zero * sums[half];
            }
            if (!codes_are_shorts(call.coding)) {
                __builtin_memcpy(call.coded.codes + index * kUnitDepth, codes, sizeof(codes));
                continue;
            }
            int16_t* shorts = reinterpret_cast<int16_t*>(call.coded.codes) + index * kUnitDepth;
            for (int64_t i = 0; i < kUnitDepth; i += kStepDepth, shorts += kStepDepth) {
                shorts[0] = codes[i], shorts[1] = codes[i + 2];
                shorts[2] = codes[i + 1], shorts[3] = codes[i + 3];
            }
        }
}

}  // namespace
}  // namespace pagoda
