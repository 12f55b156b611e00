// Products of heads along the rows of coded weights: what takes queries into latent space, from the codes of what makes
// keys of latents.
//
// A vector has a lane for each row of weights, and lanes are added up at the end: what the scales of a unit are the
// input is multiplied by, once for all its columns. Input is not coded. A row is computed by itself, in an order that
// depends on sizes alone.
#pragma once

#include "coded_sums.h"
#include "heads.h"

namespace pagoda {
namespace {

// Rows of input that meet a step of codes at a time: their sums, of four columns, fit into registers.
constexpr int kHeadRows = kLanes == 16 ? kMostHeadRows : kMostHeadRows / 2;

// Multiplies input by the scales of a half of a unit; `low` is what minima take away of all its columns.
template <int kRows>
inline void scale_input(const CodedHeadsCall& call, const uint8_t* head, const uint8_t* unit, int half, const float* input,
                        float* scaled, float (&low)[kRows]) {
    const Coding& coding = call.coding;
    const int64_t nbytes = number_nbytes(coding.scale), stride = block_nbytes(coding, call.columns);
    Floats minima[kRows]{};
    for (int64_t first = 0; first < call.depth; first += kLanes) {
        const int64_t block = first / kCodedRows * stride, lane = first % kCodedRows;
        Floats scale = read_scales(head + block + lane * nbytes, coding.scale), minimum{};
        const uint8_t* parts = unit + block + half * kCodedRows + lane;
        if (coding.has_zeros) minimum = scale * read_parts(unit + block + lane);
        if (kinds_in_head(coding) == 2) {
            minimum = read_scales(head + block + (kCodedRows + lane) * nbytes, coding.scale);
            if (coding.num_parts > 0) minimum = minimum * read_parts(parts + coding.num_parts * kCodedRows);
        }
        if (coding.num_parts > 0) scale = scale * read_parts(parts);
        for (int row = 0; row < kRows; row++) {
            const Floats own = load(input + row * call.depth + first);
            store(scaled + row * call.depth + first, own * scale);
            minima[row] += own * minimum;
        }
    }
    for (int row = 0; row < kRows; row++) low[row] = horizontal_sum(minima[row]);
}

// The results of rows for the columns of a step.
template <class Codes, int kRows>
inline void multiply_step(const CodedHeadsCall& call, const uint8_t* codes, int64_t step, const float* scaled,
                          const float (&low)[kRows], float (&results)[kRows][kUnitDepth]) {
    const int64_t stride = block_nbytes(call.coding, call.columns);
    const Floats zero = splat(float(call.coding.zero));
    Floats sums[kStepDepth][kRows]{};
    for (int64_t first = 0; first < call.depth; first += kLanes) {
        const uint8_t* own = codes + first / kCodedRows * stride + first % kCodedRows * kStepDepth;
        const Ints words = reinterpret_cast<Ints>(Codes::step(own, step));
        for (int place = 0; place < kStepDepth; place++) {
            const Floats weights = floats_of(words >> (8 * place) & 0xff) - zero;
            for (int row = 0; row < kRows; row++) sums[place][row] += weights * load(scaled + row * call.depth + first);
        }
    }
    for (int place = 0; place < kStepDepth; place++)
        for (int row = 0; row < kRows; row++)
            results[row][step * kStepDepth + place] = horizontal_sum(sums[place][row]) - low[row];
}

// Rows [row, row + kRows) of a head, whose weights are at `weight`.
template <class Codes, int kRows>
void multiply_rows(const CodedHeadsCall& call, const uint8_t* weight, int64_t head, int64_t row, float* room) {
    const Coding& coding = call.coding;
    const int halves = coding.num_parts == 2 ? 2 : 1;
    float *input = room, *scaled = room + kRows * call.depth;
    for (int i = 0; i < kRows; i++)
        read_row(input + i * call.depth, head_row(call.input, row + i, head), call.input.number, call.depth);
    const uint8_t *data = weight, *superunit = weight;
    for (int64_t unit = 0; unit < num_units(call.columns); unit++) {
        if (unit % coding.superunit == 0) {
            superunit = data;
            data += head_nbytes(coding);
        }
        alignas(64) float results[kRows][kUnitDepth];
        for (int half = 0; half < halves; half++) {
            float low[kRows];
            scale_input<kRows>(call, superunit, data, half, input, scaled, low);
            for (int64_t step = half * kUnitSteps / halves; step < (half + 1) * kUnitSteps / halves; step++)
                multiply_step<Codes, kRows>(call, data + parts_nbytes(coding), step, scaled, low, results);
        }
        data += unit_nbytes(coding);
        const int64_t column = unit * kUnitDepth, left = call.columns - column;
        for (int i = 0; i < kRows; i++) {
            uint8_t* out = head_row(call.out, row + i, head) + column * number_nbytes(call.out.number);
            write_row(out, call.out.number, results[i], left < kUnitDepth ? left : kUnitDepth);
        }
    }
}

template <class Codes>
void multiply_coded_heads(const CodedHeadsCall& call, int64_t first_head, int64_t last_head, float* room) {
    const int64_t stride = call.head_blocks * block_nbytes(call.coding, call.columns);
    for (int64_t head = first_head; head < last_head; head++)
        in_rows<kHeadRows>(0, call.num_rows, [&](auto some, int64_t row) {
            multiply_rows<Codes, decltype(some)::value>(call, call.weight + head * stride, head, row, room);
        });
}

// Heads [first_head, last_head); `room` is for twice kMostHeadRows rows of input.
inline void coded_heads(const CodedHeadsCall& call, int64_t first_head, int64_t last_head, float* room) {
    if (call.coding.has_table) return multiply_coded_heads<PackedCodes<4, true>>(call, first_head, last_head, room);
    switch (call.coding.bits) {
        case 2: return multiply_coded_heads<PackedCodes<2>>(call, first_head, last_head, room);
        case 3: return multiply_coded_heads<PackedCodes<3>>(call, first_head, last_head, room);
        case 4: return multiply_coded_heads<PackedCodes<4>>(call, first_head, last_head, room);
        case 5: return multiply_coded_heads<PackedCodes<5>>(call, first_head, last_head, room);
        case 6: return multiply_coded_heads<PackedCodes<6>>(call, first_head, last_head, room);
        default: return multiply_coded_heads<PackedCodes<8>>(call, first_head, last_head, room);
    }
}

}  // namespace
}  // namespace pagoda
