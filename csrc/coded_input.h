// Rows of input as codes of 8 bits, with a scale for each row and unit, as llama.cpp does: how they are made, and where
// those are that enter a unit.
#pragma once

#include "coded_codes.h"
#include "pointwise.h"
#include "prefetch.h"

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
constexpr bool kMultipliesWords = true;
constexpr int kTileRows = 6, kUnpackedBlocks = kMostUnpackedBlocks, kUnpackedJoint = 2;
#else
constexpr bool kMultipliesWords = false;
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

inline int32_t largest_lane(Ints values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(values));
#elif defined(__AVX2__)
    const __m256i whole = reinterpret_cast<__m256i>(values);
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    most = _mm_max_epi32(most, _mm_unpackhi_epi64(most, most));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 1)));
#else
    int32_t most = values[0];
    for (int lane = 1; lane < kLanes; lane++) most = values[lane] > most ? values[lane] : most;
    return most;
#endif
}

// Of the codes of each half of a unit.
inline void sum_halves(const int8_t (&codes)[kUnitDepth], int32_t (&sums)[2]) {
#if defined(__AVX2__)
    constexpr int kLift = 128;  // codes are unsigned with it, as the instruction takes them
    const __m256i lifted = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), _mm256_set1_epi8(-kLift));
    const __m256i quarters = _mm256_sad_epu8(lifted, _mm256_setzero_si256());
    sums[0] = int32_t(_mm256_extract_epi64(quarters, 0) + _mm256_extract_epi64(quarters, 1)) - kLift * kUnitDepth / 2;
    sums[1] = int32_t(_mm256_extract_epi64(quarters, 2) + _mm256_extract_epi64(quarters, 3)) - kLift * kUnitDepth / 2;
#else
    sums[0] = sums[1] = 0;
    for (int64_t i = 0; i < kUnitDepth; i++) sums[i / (kUnitDepth / 2)] += codes[i];
#endif
}

// Codes a unit: to the nearest of 255 levels, ties to even, the largest of which is the largest number. Numbers are
// divided, which leaves compilers no product to fuse: all instruction sets give the same codes. NaN makes the scale NaN:
// as whole numbers, which have the order of positive floats, its bits are larger than those of all numbers.
inline void code_unit(const float* values, int8_t (&codes)[kUnitDepth], float& scale, int32_t (&sums)[2]) {
    Ints sizes{};
    for (int64_t i = 0; i < kUnitDepth; i += kLanes) {
        const Ints size = reinterpret_cast<Ints>(load(values + i)) & 0x7fffffff;
        sizes = size > sizes ? size : sizes;
    }
    const int32_t bits = largest_lane(sizes);
    float most;
    __builtin_memcpy(&most, &bits, sizeof(most));
    const float step = most / kMostInputCode;
    scale = most < kLeastInput ? 0.0f : step;
    const Floats rounding = splat(12582912.0f);  // 1.5 x 2^23: a sum with it has no places behind the point
    for (int64_t i = 0; i < kUnitDepth; i += kLanes) {
        const Floats rounded = load(values + i) / splat(step) + rounding;
        const Ints wide = reinterpret_cast<Ints>(rounded) - reinterpret_cast<Ints>(rounding);
        *reinterpret_cast<UnalignedBytes*>(codes + i) = __builtin_convertvector(wide, Bytes);
    }
    sum_halves(codes, sums);
}

// All lines of a row at once: they may lie in the caches of another processor, far away.
inline void fetch_row(const CodedCall& call, int64_t row) {
    const int64_t nbytes = call.depth * number_nbytes(call.number);
    for (int64_t line = 0; line < nbytes; line += kLineNbytes) prefetch_first(call.input + row * nbytes + line);
}

// Rows [first, last) of the input. Behind its depth come zeros. A weight's minimum counts as often as the input's sum,
// its zero as the sum of codes, which its sums begin with: of each half where these have parts of their own, else of both.
inline void code_rows(const CodedCall& call, int64_t first, int64_t last) {
    const int64_t units = num_units(call.depth), nbytes = number_nbytes(call.number);
    const int64_t group = rows_of_groups(call.rows);
    for (int64_t row = first; row < last; row++) {
        fetch_row(call, row);
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
}

}  // namespace
}  // namespace pagoda
