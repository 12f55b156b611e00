// What products of coded weights with few and with many rows of input share: sums of a unit, their scaling, results.
//
// A vector has a lane for each output column, so that sums need no adding up of lanes. What a unit sums to is exact, and is
// scaled and added in fp32, unit by unit: a row's result depends on nothing that is computed beside it.
#pragma once

#include <type_traits>

#include "coded_input.h"

namespace pagoda {
namespace {

// Pairs of products of 16 bits can be summed so often: 2 x 127 x the largest code, and again.
constexpr int most_sums(int most_code) { return 32767 / (2 * 127 * most_code); }

template <class Codes>
constexpr bool takes_shorts() {
    return kMultipliesShorts && most_sums(Codes::kMost) < 2;
}

// Of a row of input.
template <class Codes>
constexpr int64_t unit_input_nbytes() {
    return takes_shorts<Codes>() ? 2 * kUnitDepth : kUnitDepth;
}

inline Ints splat_code_word(const int8_t* codes) {
    int32_t word;
    __builtin_memcpy(&word, codes, 4);
    return word - Ints{};
}

#if defined(__AVX512F__)
typedef __m512i Register;
inline Register add_shorts(Register a, Register b) { return _mm512_add_epi16(a, b); }
inline Register multiply_bytes(Register codes, Register input) { return _mm512_maddubs_epi16(codes, input); }
inline Register multiply_shorts(Register codes, Register input) { return _mm512_madd_epi16(codes, input); }
inline Register ones() { return _mm512_set1_epi16(1); }
#elif defined(__AVX2__)
typedef __m256i Register;
inline Register add_shorts(Register a, Register b) { return _mm256_add_epi16(a, b); }
inline Register multiply_bytes(Register codes, Register input) { return _mm256_maddubs_epi16(codes, input); }
inline Register multiply_shorts(Register codes, Register input) { return _mm256_madd_epi16(codes, input); }
inline Register ones() { return _mm256_set1_epi16(1); }
#endif

// Adds the products of half a unit to the sums of rows, whose codes lie one behind the other in `input`.
template <class Codes, int kRows, int kVectors>
inline void multiply_half(const uint8_t* const (&data)[kVectors], int half, const int8_t* input,
                          Ints (&sums)[kVectors][kRows]) {
    constexpr int64_t kStride = unit_input_nbytes<Codes>();
    input += half * kStride / 2;
#if defined(__AVX512VNNI__)
    for (int step = 0; step < kHalfSteps; step++) {
        Register codes[kVectors];
        for (int vector = 0; vector < kVectors; vector++)
            codes[vector] = reinterpret_cast<Register>(Codes::step(data[vector], half * kHalfSteps + step));
        for (int row = 0; row < kRows; row++) {
            const Register words = reinterpret_cast<Register>(splat_code_word(input + row * kStride + step * kStepDepth));
            for (int vector = 0; vector < kVectors; vector++)
                sums[vector][row] = reinterpret_cast<Ints>(
                    _mm512_dpbusd_epi32(reinterpret_cast<Register>(sums[vector][row]), codes[vector], words));
        }
    }
#elif defined(__AVX2__)
    static_assert(kVectors == 1, "registers are few");
    if constexpr (takes_shorts<Codes>()) {
        for (int step = 0; step < kHalfSteps; step++) {
            const Shorts codes = Codes::step(data[0], half * kHalfSteps + step);
            const Register even = reinterpret_cast<Register>(codes & 0xff), odd = reinterpret_cast<Register>(codes >> 8);
            for (int row = 0; row < kRows; row++) {
                const int8_t* words = input + row * kStride + step * kStepDepth * 2;
                const Register first = reinterpret_cast<Register>(splat_code_word(words));
                const Register second = reinterpret_cast<Register>(splat_code_word(words + 4));
                sums[0][row] += reinterpret_cast<Ints>(multiply_shorts(even, first));
                sums[0][row] += reinterpret_cast<Ints>(multiply_shorts(odd, second));
            }
        }
    } else {
        constexpr int kTurn = most_sums(Codes::kMost) < kHalfSteps ? 2 : kHalfSteps;
        for (int begin = 0; begin < kHalfSteps; begin += kTurn) {
            Register products[kRows];
            for (int step = begin; step < begin + kTurn; step++) {
                const Register codes = reinterpret_cast<Register>(Codes::step(data[0], half * kHalfSteps + step));
                for (int row = 0; row < kRows; row++) {
                    const int8_t* words = input + row * kStride + step * kStepDepth;
                    const Register product = multiply_bytes(codes, reinterpret_cast<Register>(splat_code_word(words)));
                    products[row] = step == begin ? product : add_shorts(products[row], product);
                }
            }
            for (int row = 0; row < kRows; row++)
                sums[0][row] += reinterpret_cast<Ints>(multiply_shorts(products[row], ones()));
        }
    }
#else
    static_assert(kVectors == 1, "registers are few");
    for (int step = 0; step < kHalfSteps; step++) {
        const Ints codes = reinterpret_cast<Ints>(Codes::step(data[0], half * kHalfSteps + step));
        for (int row = 0; row < kRows; row++)
            for (int place = 0; place < kStepDepth; place++)
                sums[0][row] += (codes >> (8 * place) & 0xff) * int32_t(input[row * kStride + step * kStepDepth + place]);
    }
#endif
}

// Numbers of a superunit: one for each lane.
inline Floats read_scales(const uint8_t* data, Number number) {
    if (number == Number::fp32) return load(reinterpret_cast<const float*>(data));
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
#else
    alignas(64) float scales[kLanes];
    read_row(scales, data, Number::fp16, kLanes);
    return load(scales);
#endif
}

// Parts of scales: a signed byte for each lane.
inline Floats read_parts(const uint8_t* data) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data))));
#else
    Floats parts;
    for (int lane = 0; lane < kLanes; lane++) parts[lane] = float(int8_t(data[lane]));
    return parts;
#endif
}

inline Floats floats_of(Ints values) { return __builtin_convertvector(values, Floats); }

template <int kRows, int kVectors>
inline void start_sums(const InputUnit& input, int half, Ints (&sums)[kVectors][kRows]) {
    for (int row = 0; row < kRows; row++)
        for (int vector = 0; vector < kVectors; vector++)
            sums[vector][row] = input.starts[half * input.rows + row] - Ints{};
}

// Adds what a unit, or a half of it, sums to, to the totals of rows. Sums are whole numbers below 2^24, which fp32 holds.
template <int kRows, int kVectors>
__attribute__((always_inline)) inline void add_scaled(bool has_minimum, const Ints (&sums)[kVectors][kRows], const InputUnit& input, int half,
                       const Floats (&scale)[kVectors], const Floats (&minimum)[kVectors],
                       Floats (&totals)[kVectors][kRows]) {
    for (int row = 0; row < kRows; row++) {
        const float factor = input.scales[row];
        for (int vector = 0; vector < kVectors; vector++)
            totals[vector][row] += floats_of(sums[vector][row]) * (scale[vector] * factor);
    }
    if (!has_minimum) return;
    for (int row = 0; row < kRows; row++) {
        const float term = input.terms[half * input.rows + row];
        for (int vector = 0; vector < kVectors; vector++) totals[vector][row] -= minimum[vector] * term;
    }
}

// The results of a row in a block. Columns that do not exist are padding of the last block.
inline void write_coded(const CodedCall& call, const float* totals, int64_t row, int64_t column) {
    const int64_t nbytes = number_nbytes(call.number), count = call.columns - column;
    uint8_t* const out = call.out + (row * call.columns + column) * nbytes;
    alignas(64) float results[kCodedRows];
    if (call.bias) {
        read_row(results, call.bias + column * nbytes, call.number, count < kCodedRows ? count : kCodedRows);
        for (int64_t i = 0; i < kCodedRows; i++) results[i] += totals[i];
        totals = results;
    }
    if (count < kCodedRows)
        write_row(out, call.number, totals, count);
    else
        write_row(out, call.number, totals, kCodedRows);  // so many that the compiler knows
}

// Calls `of_rows` for as many rows of `count` as kRows has room for, and then with half as many, and so on.
template <int kRows, class OfRows>
inline void in_rows(int64_t row, int64_t count, OfRows of_rows) {
    for (; count >= kRows; row += kRows, count -= kRows) of_rows(std::integral_constant<int, kRows>(), row);
    if constexpr (kRows > 1) in_rows<kRows / 2>(row, count, of_rows);
}

}  // namespace
}  // namespace pagoda
