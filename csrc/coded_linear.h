// A linear layer on coded weights, for any number of rows: bytes times bytes, summed exactly in a unit of depth.
//
// Input is coded before (coded_input.h). A vector has a lane for each output column, so that sums need no adding up of
// lanes. What a unit sums to is scaled and added in fp32, unit by unit: a row's result depends on nothing that is computed
// beside it.
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
inline void add_scaled(bool has_minimum, const Ints (&sums)[kVectors][kRows], const InputUnit& input, int half,
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

// Vectors of columns, each at its place in the stream of its block: where the parts of a unit and its codes are.
template <int kVectors>
struct Columns {
    const uint8_t* units[kVectors];
    const uint8_t* codes[kVectors];
};

template <class Codes, int kRows, int kVectors>
inline void add_unit(const Coding& coding, const Columns<kVectors>& columns, const InputUnit& input,
                     const Floats (&scales)[kVectors], const Floats (&minima)[kVectors],
                     Floats (&totals)[kVectors][kRows]) {
    const int64_t minimum_parts = coding.num_parts * kCodedRows;
    Floats scale[kVectors], minimum[kVectors];
    const auto take_part = [&](int64_t part) {
        for (int vector = 0; vector < kVectors; vector++) {
            const uint8_t* own = columns.units[vector] + part * kCodedRows;
            scale[vector] = scales[vector] * read_parts(own);
            minimum[vector] = coding.has_minimum ? minima[vector] * read_parts(own + minimum_parts) : minima[vector];
        }
    };
    Ints sums[kVectors][kRows];
    start_sums(input, 0, sums);
    multiply_half<Codes>(columns.codes, 0, input.codes, sums);
    if (coding.num_parts == 2) {
        take_part(0);
        add_scaled(coding.has_minimum, sums, input, 0, scale, minimum, totals);
        start_sums(input, 1, sums);
    }
    multiply_half<Codes>(columns.codes, 1, input.codes, sums);
    if (coding.num_parts == 0) return add_scaled(coding.has_minimum, sums, input, 0, scales, minima, totals);
    take_part(coding.num_parts - 1);
    add_scaled(coding.has_minimum, sums, input, coding.num_parts - 1, scale, minimum, totals);
}

// A stretch of depth: units [begin, end), of whole superunits. `stream` is that of a block of columns from there on, and
// `plain` its codes, a byte each, or null; the next block lies `stride` behind, and its codes `plain_stride`.
struct Stretch {
    int64_t begin;
    int64_t end;
    const uint8_t* stream;
    const uint8_t* plain;
    int64_t stride;
    int64_t plain_stride;
};

// Adds to the totals of rows [row, row + kRows) and of all vectors of kBlocks blocks, kJoint of which meet a unit at once.
template <class Codes, int kBlocks, int kJoint, int kRows>
inline void multiply_coded(const CodedCall& call, const Stretch& stretch, int64_t row,
                           Floats (&given)[kBlocks * kBlockVectors / kJoint][kJoint][kRows]) {
    constexpr int kGroups = kBlocks * kBlockVectors / kJoint;
    Floats totals[kGroups][kJoint][kRows];  // in registers: what nobody else can see need not be stored
    __builtin_memcpy(totals, given, sizeof(totals));
    const Coding coding = call.coding;
    const int64_t head = kCodedRows * number_nbytes(coding.scale);
    const uint8_t* stream = stretch.stream;
    const uint8_t* plain = stretch.plain;
    constexpr int64_t kInputNbytes = unit_input_nbytes<Codes>();
    InputUnit input(call, stretch.begin, row, kInputNbytes);
    for (int64_t begin = stretch.begin; begin < stretch.end; begin += coding.superunit) {
        const int64_t end = begin + coding.superunit < stretch.end ? begin + coding.superunit : stretch.end;
        Floats scales[kGroups][kJoint], minima[kGroups][kJoint]{};
        for (int i = 0; i < kGroups * kJoint; i++) {
            const uint8_t* own = stream + i / kBlockVectors * stretch.stride;
            own += i % kBlockVectors * kLanes * number_nbytes(coding.scale);
            scales[i / kJoint][i % kJoint] = read_scales(own, coding.scale);
            if (coding.has_minimum) minima[i / kJoint][i % kJoint] = read_scales(own + head, coding.scale);
        }
        stream += head_nbytes(coding);
        for (int64_t unit = begin; unit < end; unit++) {
            const uint8_t* codes = plain ? plain : stream + parts_nbytes(coding);
            const int64_t codes_stride = plain ? stretch.plain_stride : stretch.stride;
            for (int group = 0; group < kGroups; group++) {
                Columns<kJoint> columns;
                for (int vector = 0; vector < kJoint; vector++) {
                    const int64_t block = (group * kJoint + vector) / kBlockVectors;
                    const int64_t lane = (group * kJoint + vector) % kBlockVectors * kLanes;
                    columns.units[vector] = stream + block * stretch.stride + lane;
                    columns.codes[vector] = codes + block * codes_stride + lane * kStepDepth;
                }
                add_unit<Codes>(coding, columns, input, scales[group], minima[group], totals[group]);
            }
            input.advance(kInputNbytes);
            stream += unit_nbytes(coding);
            if (plain) plain += kPlaneNbytes * kUnitSteps;
        }
    }
    __builtin_memcpy(given, totals, sizeof(totals));
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

// A block, for few rows.
template <class Codes>
void compute_packed(const CodedCall& call, const uint8_t* stream, int64_t column) {
    const Stretch stretch{0, num_units(call.depth), stream, nullptr, 0, 0};
    in_rows<kPackedRows>(0, call.rows, [&](auto some, int64_t row) {
        constexpr int kRows = decltype(some)::value;
        Floats totals[kBlockVectors][1][kRows]{};
        multiply_coded<Codes, 1>(call, stretch, row, totals);
        alignas(64) float results[kRows][kCodedRows];
        for (int i = 0; i < kRows; i++)
            for (int64_t vector = 0; vector < kBlockVectors; vector++)
                store(results[i] + vector * kLanes, totals[vector][0][i]);
        for (int i = 0; i < kRows; i++) write_coded(call, results[i], row + i, column);
    });
}

template <class Codes>
void unpack_stretch(const Coding& coding, const Stretch& stretch, uint8_t* plain) {
    const uint8_t* stream = stretch.stream;
    for (int64_t unit = stretch.begin; unit < stretch.end; unit++) {
        if (unit % coding.superunit == 0) stream += head_nbytes(coding);
        for (int64_t step = 0; step < kUnitSteps; step++, plain += kPlaneNbytes)
            for (int64_t vector = 0; vector < kBlockVectors; vector++) {
                const int64_t own = vector * kLanes * kStepDepth;
                const Shorts codes = Codes::step(stream + parts_nbytes(coding) + own, step);
                *reinterpret_cast<UnalignedShorts*>(plain + own) = codes;
            }
        stream += unit_nbytes(coding);
    }
}

// Those of `Codes` that are a byte each: as many kinds as there are ways to sum them.
template <class Codes>
using Unpacked = PlainCodes<Codes::kMost <= 31 ? 31 : Codes::kMost <= 63 ? 63 : 255>;

// kBlocks blocks, for many rows: stretch by stretch of depth. What rows sum to lies in `room` in between.
template <class Codes, int kBlocks, int kJoint>
void compute_unpacked(const CodedCall& call, const uint8_t* stream, int64_t column, const CodedRoom& room) {
    constexpr int kVectors = kBlocks * kBlockVectors;
    const Coding& coding = call.coding;
    const int64_t units = num_units(call.depth), at_once = stretch_units(coding);
    Stretch stretch{0, 0, stream, room.codes, block_nbytes(coding, call.depth), at_once * kUnitDepth * kCodedRows};
    while (stretch.end < units) {
        stretch.begin = stretch.end;
        stretch.end = stretch.begin + at_once < units ? stretch.begin + at_once : units;
        for (int64_t block = 0; block < kBlocks; block++) {
            Stretch own = stretch;
            own.stream += block * stretch.stride;
            unpack_stretch<Codes>(coding, own, room.codes + block * stretch.plain_stride);
        }
        in_rows<kTileRows>(0, call.rows, [&](auto some, int64_t row) {
            constexpr int kRows = decltype(some)::value;
            Floats totals[kVectors / kJoint][kJoint][kRows]{};
            const auto place = [&](int i, int vector) { return room.totals + ((row + i) * kVectors + vector) * kLanes; };
            if (stretch.begin > 0)
                for (int i = 0; i < kRows; i++)
                    for (int vector = 0; vector < kVectors; vector++)
                        totals[vector / kJoint][vector % kJoint][i] = load(place(i, vector));
            multiply_coded<Unpacked<Codes>, kBlocks>(call, stretch, row, totals);
            for (int i = 0; i < kRows; i++)
                for (int vector = 0; vector < kVectors; vector++)
                    store(place(i, vector), totals[vector / kJoint][vector % kJoint][i]);
        });
        stretch.stream += stretch_nbytes(coding, stretch.end - stretch.begin);
    }
    for (int64_t row = 0; row < call.rows; row++)
        for (int64_t block = 0; block < kBlocks; block++)
            write_coded(call, room.totals + (row * kBlocks + block) * kCodedRows, row, column + block * kCodedRows);
}

template <class Codes>
void compute_coded_blocks(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room) {
    const int64_t nbytes = block_nbytes(call.coding, call.depth);
    int64_t block = first_block;
    if (call.rows > kUnpackedRows)
        for (; block + kUnpackedBlocks <= last_block; block += kUnpackedBlocks)
            compute_unpacked<Codes, kUnpackedBlocks, kUnpackedJoint>(call, call.weight + block * nbytes, block * kCodedRows, room);
    for (; block < last_block; block++) {
        const uint8_t* stream = call.weight + block * nbytes;
        if (call.rows > kUnpackedRows)
            compute_unpacked<Codes, 1, 1>(call, stream, block * kCodedRows, room);
        else
            compute_packed<Codes>(call, stream, block * kCodedRows);
    }
}

// Blocks [first_block, last_block) of kCodedRows output columns.
inline void coded_linear(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room) {
    if (call.coding.has_table) return compute_coded_blocks<PackedCodes<4, true>>(call, first_block, last_block, room);
    switch (call.coding.bits) {
        case 2: return compute_coded_blocks<PackedCodes<2>>(call, first_block, last_block, room);
        case 3: return compute_coded_blocks<PackedCodes<3>>(call, first_block, last_block, room);
        case 4: return compute_coded_blocks<PackedCodes<4>>(call, first_block, last_block, room);
        case 5: return compute_coded_blocks<PackedCodes<5>>(call, first_block, last_block, room);
        case 6: return compute_coded_blocks<PackedCodes<6>>(call, first_block, last_block, room);
        default: return compute_coded_blocks<PackedCodes<8>>(call, first_block, last_block, room);
    }
}

}  // namespace
}  // namespace pagoda
