// What models compute between matrix products: the norm of a row, a gated activation, sums, wider numbers, the rotation
// of heads.
//
// Results are rounded where the plain torch expressions round (kernels/reference.py), so that a model computes what it
// was trained to. Every row is computed by itself, in an order that depends on its width alone.
#pragma once

#include "exponential.h"
#include "numbers.h"

namespace pagoda {
namespace {

constexpr int64_t kPieceNumbers = 256;  // read, computed and written at a time; a multiple of all vector lengths

inline int64_t piece_numbers(int64_t width, int64_t first) {
    return width - first < kPieceNumbers ? width - first : kPieceNumbers;
}

// Numbers past `count` are set to zero up to a whole vector.
inline void read_piece(float* target, const uint8_t* row, Number number, int64_t first, int64_t count) {
    read_row(target, row + first * number_nbytes(number), number, count);
    for (int64_t i = count; i < rounded_up(count, kLanes); i++) target[i] = 0.0f;
}

inline void write_piece(uint8_t* row, Number number, int64_t first, const float* values, int64_t count) {
    write_row(row + first * number_nbytes(number), number, values, count);
}

// As a tensor of this type would hold them.
inline void round_to(Number number, float* values, int64_t count) {
    switch (number) {
        case Number::fp32: break;
        case Number::fp16:
            for (int64_t i = 0; i < count; i++) values[i] = float_of_fp16(fp16_of_float(values[i]));
            break;
        case Number::bf16:
            for (int64_t i = 0; i < count; i++) values[i] = float_of_bf16(bf16_of_float(values[i]));
            break;
    }
}

inline float sum_of_squares(const uint8_t* row, Number number, int64_t width) {
    alignas(64) float piece[kPieceNumbers];
    Floats sum{};
    for (int64_t first = 0; first < width; first += kPieceNumbers) {
        const int64_t count = piece_numbers(width, first);
        read_piece(piece, row, number, first, count);
        for (int64_t i = 0; i < count; i += kLanes) sum += load(piece + i) * load(piece + i);
    }
    return horizontal_sum(sum);
}

inline void norm_row(const NormCall& call, int64_t row) {
    alignas(64) float values[kPieceNumbers], weights[kPieceNumbers];
    const int64_t nbytes = call.width * number_nbytes(call.number);
    const uint8_t* input = call.input + row * nbytes;
    const float variance = sum_of_squares(input, call.number, call.width) / float(call.width);
    const float factor = 1.0f / __builtin_sqrtf(variance + call.epsilon);
    for (int64_t first = 0; first < call.width; first += kPieceNumbers) {
        const int64_t count = piece_numbers(call.width, first);
        read_piece(values, input, call.number, first, count);
        read_piece(weights, call.weight, call.number, first, count);
        for (int64_t i = 0; i < count; i++) values[i] *= factor;
        round_to(call.number, values, count);
        for (int64_t i = 0; i < count; i++) values[i] *= weights[i];
        write_piece(call.out + row * nbytes, call.number, first, values, count);
    }
}

inline void rms_norm(const NormCall& call, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; row++) norm_row(call, row);
}

// x * sigmoid(x), with exponentials of negative arguments only.
inline Floats silu(Floats x) {
    const Floats decay = exp2((x < 0.0f ? x : -x) * kLog2E);
    return x * (x < 0.0f ? decay : splat(1.0f)) / (1.0f + decay);
}

// out = silu(first) * second.
inline void gated_silu(const PairCall& call, int64_t first_number, int64_t last_number) {
    alignas(64) float gates[kPieceNumbers], values[kPieceNumbers];
    for (int64_t first = first_number; first < last_number; first += kPieceNumbers) {
        const int64_t count = piece_numbers(last_number, first);
        read_piece(gates, call.first, call.number, first, count);
        read_piece(values, call.second, call.number, first, count);
        for (int64_t i = 0; i < count; i += kLanes) store(gates + i, silu(load(gates + i)));
        round_to(call.number, gates, count);
        for (int64_t i = 0; i < count; i++) values[i] *= gates[i];
        write_piece(call.out, call.number, first, values, count);
    }
}

inline void add(const PairCall& call, int64_t first_number, int64_t last_number) {
    alignas(64) float values[kPieceNumbers], others[kPieceNumbers];
    for (int64_t first = first_number; first < last_number; first += kPieceNumbers) {
        const int64_t count = piece_numbers(last_number, first);
        read_piece(values, call.first, call.number, first, count);
        read_piece(others, call.second, call.number, first, count);
        for (int64_t i = 0; i < count; i++) values[i] += others[i];
        write_piece(call.out, call.number, first, values, count);
    }
}

inline void widen(const WidenCall& call, int64_t first_number, int64_t last_number) {
    read_row(call.out + first_number, call.input + first_number * number_nbytes(call.number), call.number,
             last_number - first_number);
}

// out = x * cosine + rotated(x) * sine, where rotated(x) is the second half of x, negated, then the first.
inline void rotate_head(const float* x, const float* cosine, const float* sine, Number number, int64_t width,
                        float* straight, float* crossed) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < width; i++) straight[i] = x[i] * cosine[i];
    for (int64_t i = 0; i < half; i++) crossed[i] = -x[half + i] * sine[i];
    for (int64_t i = half; i < width; i++) crossed[i] = x[i - half] * sine[i];
    round_to(number, straight, width);
    round_to(number, crossed, width);
    for (int64_t i = 0; i < width; i++) straight[i] += crossed[i];
}

inline void rotate(const RotateCall& call, int64_t first_row, int64_t last_row) {
    alignas(64) float x[kMaxRotatedWidth], cosine[kMaxRotatedWidth], sine[kMaxRotatedWidth];
    alignas(64) float straight[kMaxRotatedWidth], crossed[kMaxRotatedWidth];
    const Number number = call.input.number;
    const int64_t nbytes = number_nbytes(number);
    for (int64_t row = first_row; row < last_row; row++) {
        read_row(cosine, call.cosines + row * call.width * nbytes, number, call.width);
        read_row(sine, call.sines + row * call.width * nbytes, number, call.width);
        for (int64_t head = 0; head < call.num_heads; head++) {
            const int64_t from = row * call.input.row_stride + head * call.input.head_stride;
            const int64_t to = row * call.out.row_stride + head * call.out.head_stride;
            read_row(x, call.input.data + from * nbytes, number, call.width);
            rotate_head(x, cosine, sine, number, call.width, straight, crossed);
            write_row(call.out.data + to * nbytes, number, straight, call.width);
        }
    }
}

}  // namespace
}  // namespace pagoda
