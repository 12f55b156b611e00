// A linear layer on coded weights, for any number of rows: bytes times bytes, summed exactly in a unit of depth.
//
// Input is coded to 8 bits with a scale for each row and unit, as llama.cpp does. A vector has a lane for each output
// column, so that sums need no adding up of lanes. What a unit sums to is scaled and added in fp32, unit by unit: a row's
// result depends on nothing that is computed beside it.
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

// Pairs of products of 16 bits can be summed so often: 2 x 127 x the largest code, and again.
constexpr int most_sums(int most_code) { return 32767 / (2 * 127 * most_code); }

template <class Codes>
constexpr bool takes_shorts() {
    return kMultipliesShorts && most_sums(Codes::kMost) < 2;
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

// The sums of products of half a unit; `input` [kRows] at a distance of `stride` codes.
template <class Codes, int kRows>
inline void multiply_half(const uint8_t* data, int half, const int8_t* input, int64_t stride, Ints (&sums)[kRows]) {
#if defined(__AVX512VNNI__)
    for (int row = 0; row < kRows; row++) sums[row] = Ints{};
    for (int step = 0; step < kHalfSteps; step++) {
        const Register codes = reinterpret_cast<Register>(Codes::step(data, half * kHalfSteps + step));
        for (int row = 0; row < kRows; row++) {
            const Register words = reinterpret_cast<Register>(splat_code_word(input + row * stride + step * kStepDepth));
            sums[row] = reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<Register>(sums[row]), codes, words));
        }
    }
#elif defined(__AVX2__)
    if constexpr (takes_shorts<Codes>()) {
        for (int step = 0; step < kHalfSteps; step++) {
            const Shorts codes = Codes::step(data, half * kHalfSteps + step);
            const Register even = reinterpret_cast<Register>(codes & 0xff), odd = reinterpret_cast<Register>(codes >> 8);
            for (int row = 0; row < kRows; row++) {
                const int8_t* words = input + row * stride + step * kStepDepth * 2;
                const Register first = reinterpret_cast<Register>(splat_code_word(words));
                const Register second = reinterpret_cast<Register>(splat_code_word(words + 4));
                const Ints product = reinterpret_cast<Ints>(multiply_shorts(even, first));
                sums[row] = step == 0 ? product : sums[row] + product;
                sums[row] += reinterpret_cast<Ints>(multiply_shorts(odd, second));
            }
        }
    } else {
        constexpr int kTurn = most_sums(Codes::kMost) < kHalfSteps ? 2 : kHalfSteps;
        for (int begin = 0; begin < kHalfSteps; begin += kTurn) {
            Register products[kRows];
            for (int step = begin; step < begin + kTurn; step++) {
                const Register codes = reinterpret_cast<Register>(Codes::step(data, half * kHalfSteps + step));
                for (int row = 0; row < kRows; row++) {
                    const int8_t* words = input + row * stride + step * kStepDepth;
                    const Register product = multiply_bytes(codes, reinterpret_cast<Register>(splat_code_word(words)));
                    products[row] = step == begin ? product : add_shorts(products[row], product);
                }
            }
            for (int row = 0; row < kRows; row++) {
                const Ints turn = reinterpret_cast<Ints>(multiply_shorts(products[row], ones()));
                sums[row] = begin == 0 ? turn : sums[row] + turn;
            }
        }
    }
#else
    for (int row = 0; row < kRows; row++) sums[row] = Ints{};
    for (int step = 0; step < kHalfSteps; step++) {
        const Ints codes = reinterpret_cast<Ints>(Codes::step(data, half * kHalfSteps + step));
        for (int row = 0; row < kRows; row++)
            for (int place = 0; place < kStepDepth; place++)
                sums[row] += (codes >> (8 * place) & 0xff) * int32_t(input[row * stride + step * kStepDepth + place]);
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

// Some rows of input, as they enter a unit.
struct InputUnit {
    const int8_t* codes;
    const float* scales;
    const float* terms;
    int64_t code_stride;
    int64_t unit_stride;
};

// Adds what a unit, or a half of it, sums to, to the totals of rows. Sums and terms of zeros are whole numbers below
// 2^24, which fp32 holds.
template <int kRows>
inline void add_scaled(const CodedCall& call, const Ints (&sums)[kRows], const InputUnit& input, int half, Floats scale,
                       Floats minimum, Floats (&totals)[kRows]) {
    for (int row = 0; row < kRows; row++) {
        const float factor = input.scales[row * input.unit_stride], term = input.terms[row * input.unit_stride * 2 + half];
        if (call.coding.has_minimum) {
            totals[row] += floats_of(sums[row]) * (scale * factor);
            totals[row] -= minimum * term;
        } else {
            totals[row] += (floats_of(sums[row]) - term) * (scale * factor);
        }
    }
}

// Of one vector of columns.
template <class Codes, int kRows>
inline void add_unit(const CodedCall& call, const uint8_t* unit, const uint8_t* codes, const InputUnit& input,
                     Floats scale, Floats minimum, Floats (&totals)[kRows]) {
    constexpr int64_t kHalfCodes = kUnitDepth / 2 * (takes_shorts<Codes>() ? 2 : 1);
    const Coding& coding = call.coding;
    const uint8_t* minima = unit + coding.num_parts * kCodedRows;
    Ints first[kRows], second[kRows];
    multiply_half<Codes, kRows>(codes, 0, input.codes, input.code_stride, first);
    if (coding.num_parts == 2) {
        const Floats low = coding.has_minimum ? minimum * read_parts(minima) : minimum;
        add_scaled<kRows>(call, first, input, 0, scale * read_parts(unit), low, totals);
    }
    multiply_half<Codes, kRows>(codes, 1, input.codes + kHalfCodes, input.code_stride, second);
    if (coding.num_parts < 2)
        for (int row = 0; row < kRows; row++) second[row] += first[row];
    const int64_t part = coding.num_parts == 2 ? kCodedRows : 0;
    if (coding.num_parts > 0) scale *= read_parts(unit + part);
    if (coding.num_parts > 0 && coding.has_minimum) minimum *= read_parts(minima + part);
    add_scaled<kRows>(call, second, input, coding.num_parts == 2, scale, minimum, totals);
}

// Of rows [row, row + kRows) and the columns of a block. `plain` has its codes a byte each, or is null.
template <class Codes, int kRows>
void multiply_coded(const CodedCall& call, const uint8_t* stream, const uint8_t* plain, int64_t row,
                    Floats (&totals)[kBlockVectors][kRows]) {
    const Coding& coding = call.coding;
    const int64_t units = num_units(call.depth), head = kCodedRows * number_nbytes(coding.scale);
    const int64_t code_stride = units * kUnitDepth * (takes_shorts<Codes>() ? 2 : 1);
    InputUnit input{call.coded.codes + row * code_stride, call.coded.scales + row * units,
                    call.coded.terms + row * units * 2, code_stride, units};
    for (int64_t begin = 0; begin < units; begin += coding.superunit) {
        const uint8_t* scales = stream;
        stream += head_nbytes(coding);
        const int64_t end = begin + coding.superunit < units ? begin + coding.superunit : units;
        Floats scale[kBlockVectors], minimum[kBlockVectors]{};
        for (int64_t vector = 0; vector < kBlockVectors; vector++) {
            const uint8_t* own = scales + vector * kLanes * number_nbytes(coding.scale);
            scale[vector] = read_scales(own, coding.scale);
            if (coding.has_minimum) minimum[vector] = read_scales(own + head, coding.scale);
        }
        for (int64_t unit = begin; unit < end; unit++) {
            const uint8_t* codes = plain ? plain + unit * kPlaneNbytes * kUnitSteps : stream + parts_nbytes(coding);
            for (int64_t vector = 0; vector < kBlockVectors; vector++)
                add_unit<Codes, kRows>(call, stream + vector * kLanes, codes + vector * kLanes * kStepDepth, input,
                                       scale[vector], minimum[vector], totals[vector]);
            stream += unit_nbytes(coding);
            input.codes += code_stride / units;
            input.scales += 1;
            input.terms += 2;
        }
    }
}

// Columns that do not exist are padding of the last block.
inline void write_coded(const CodedCall& call, const float* totals, int64_t row, int64_t column) {
    const int64_t nbytes = number_nbytes(call.number), left = call.columns - column;
    const int64_t count = left < kCodedRows ? left : kCodedRows;
    alignas(64) float results[kCodedRows], biases[kCodedRows];
    __builtin_memcpy(results, totals, sizeof(results));
    if (call.bias) {
        read_row(biases, call.bias + column * nbytes, call.number, count);
        for (int64_t i = 0; i < count; i++) results[i] += biases[i];
    }
    write_row(call.out + (row * call.columns + column) * nbytes, call.number, results, count);
}

template <class Codes, int kRows>
void compute_coded(const CodedCall& call, const uint8_t* stream, const uint8_t* plain, int64_t row, int64_t column) {
    Floats totals[kBlockVectors][kRows]{};
    multiply_coded<Codes, kRows>(call, stream, plain, row, totals);
    alignas(64) float results[kCodedRows];
    for (int i = 0; i < kRows; i++) {
        for (int64_t vector = 0; vector < kBlockVectors; vector++) store(results + vector * kLanes, totals[vector][i]);
        write_coded(call, results, row + i, column);
    }
}

// Rows of input that meet a block at a time: their sums fit into registers.
constexpr int kCodedMostRows = kLanes == 16 ? 8 : 4;

// As many rows of `count` as make a power of two, at most kRows, and then the others.
template <class Codes, int kRows = kCodedMostRows>
void compute_coded_rows(const CodedCall& call, const uint8_t* stream, const uint8_t* plain, int64_t row, int64_t count,
                        int64_t column) {
    for (; count >= kRows; row += kRows, count -= kRows) compute_coded<Codes, kRows>(call, stream, plain, row, column);
    if constexpr (kRows > 1) compute_coded_rows<Codes, kRows / 2>(call, stream, plain, row, count, column);
}

template <class Codes>
void unpack_block(const CodedCall& call, const uint8_t* stream, uint8_t* plain) {
    const int64_t units = num_units(call.depth);
    for (int64_t unit = 0; unit < units; unit++) {
        if (unit % call.coding.superunit == 0) stream += head_nbytes(call.coding);
        for (int64_t step = 0; step < kUnitSteps; step++, plain += kPlaneNbytes)
            for (int64_t vector = 0; vector < kBlockVectors; vector++) {
                const int64_t own = vector * kLanes * kStepDepth;
                const Shorts codes = Codes::step(stream + parts_nbytes(call.coding) + own, step);
                *reinterpret_cast<UnalignedShorts*>(plain + own) = codes;
            }
        stream += unit_nbytes(call.coding);
    }
}

// For more rows than this, codes are unpacked once for all of them.
constexpr int64_t kUnpackedRows = 2 * kCodedMostRows;

// Those of `Codes` that are a byte each: as many kinds as there are ways to sum them.
template <class Codes>
using Unpacked = PlainCodes<Codes::kMost <= 31 ? 31 : Codes::kMost <= 63 ? 63 : 255>;

template <class Codes>
void compute_coded_blocks(const CodedCall& call, int64_t first_block, int64_t last_block, uint8_t* plain) {
    const int64_t nbytes = block_nbytes(call.coding, call.depth);
    for (int64_t block = first_block; block < last_block; block++) {
        const uint8_t* stream = call.weight + block * nbytes;
        const int64_t column = block * kCodedRows;
        if (call.rows <= kUnpackedRows) {
            compute_coded_rows<Codes>(call, stream, nullptr, 0, call.rows, column);
        } else {
            unpack_block<Codes>(call, stream, plain);
            compute_coded_rows<Unpacked<Codes>>(call, stream, plain, 0, call.rows, column);
        }
    }
}

// Blocks [first_block, last_block) of kCodedRows output columns. `plain` has room for the codes of one, a byte each.
inline void coded_linear(const CodedCall& call, int64_t first_block, int64_t last_block, uint8_t* plain) {
    if (call.coding.has_table) return compute_coded_blocks<PackedCodes<4, true>>(call, first_block, last_block, plain);
    switch (call.coding.bits) {
        case 2: return compute_coded_blocks<PackedCodes<2>>(call, first_block, last_block, plain);
        case 3: return compute_coded_blocks<PackedCodes<3>>(call, first_block, last_block, plain);
        case 4: return compute_coded_blocks<PackedCodes<4>>(call, first_block, last_block, plain);
        case 5: return compute_coded_blocks<PackedCodes<5>>(call, first_block, last_block, plain);
        case 6: return compute_coded_blocks<PackedCodes<6>>(call, first_block, last_block, plain);
        default: return compute_coded_blocks<PackedCodes<8>>(call, first_block, last_block, plain);
    }
}

// Whether input codes are 16 bits wide, in the order of `kMultipliesShorts`.
inline bool codes_are_shorts(const Coding& coding) {
    return kMultipliesShorts && (coding.bits == 8 || coding.has_table);
}

// Units whose largest number is smaller are zeros: their scales would have lost places.
constexpr float kLeastInput = 0x1p-100f;

// Codes a unit: to the nearest of 255 levels, ties to even, the largest of which is the largest number. Numbers are
// divided, which leaves compilers no product to fuse: all instruction sets give the same codes. NaN makes the scale NaN.
inline void code_unit(const float* values, int8_t (&codes)[kUnitDepth], float& scale, int32_t (&sums)[2]) {
    float most = 0, any_nan = 0;
    for (int64_t i = 0; i < kUnitDepth; i++) {
        const float size = __builtin_fabsf(values[i]);
        most = size > most ? size : most;
        any_nan = values[i] == values[i] ? any_nan : values[i];
    }
    const float step = most / kMostInputCode;
    scale = any_nan != any_nan ? any_nan : most < kLeastInput ? 0.0f : step;
    constexpr float kRounding = 12582912.0f;  // 1.5 x 2^23: a sum with it has no places behind the point
    for (int64_t i = 0; i < kUnitDepth; i++)
        codes[i] = int8_t(bits_of_float(values[i] / step + kRounding) - bits_of_float(kRounding));
    for (int half = 0; half < 2; half++) {
        sums[half] = 0;
        for (int64_t i = 0; i < kUnitDepth / 2; i++) sums[half] += codes[half * kUnitDepth / 2 + i];
    }
}

// Rows [first, last) of the input. Behind its depth come zeros. A weight's minimum counts as often as the input's sum,
// its zero as the sum of codes: of each half where these have parts of their own, else of both.
inline void code_rows(const CodedCall& call, int64_t first, int64_t last) {
    const int64_t units = num_units(call.depth), nbytes = number_nbytes(call.number);
    for (int64_t row = first; row < last; row++)
        for (int64_t unit = 0; unit < units; unit++) {
            const int64_t left = call.depth - unit * kUnitDepth, index = row * units + unit;
            alignas(64) float values[kUnitDepth]{};
            int8_t codes[kUnitDepth];
            int32_t sums[2];
            read_row(values, call.input + (row * call.depth + unit * kUnitDepth) * nbytes, call.number,
                     left < kUnitDepth ? left : kUnitDepth);
            code_unit(values, codes, call.coded.scales[index], sums);
            if (call.coding.num_parts < 2) sums[0] += sums[1];
            const float factor = call.coding.has_minimum ? call.coded.scales[index] : float(call.coding.zero);
            for (int half = 0; half < 2; half++) call.coded.terms[2 * index + half] = factor * float(sums[half]);
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
