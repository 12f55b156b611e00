// Matrix products of each head by itself, for few rows: what takes queries into latent space and results out of it.
//
// Every weight is read once, for all rows. A row is computed by itself, in an order that depends on the widths alone.
#pragma once

#include "exponential.h"
#include "numbers.h"

namespace pagoda {
namespace {

inline uint8_t* head_row(const Rows& rows, int64_t row, int64_t head) {
    return rows.data + (row * rows.row_stride + head * rows.head_stride) * number_nbytes(rows.number);
}

// sums[column] += number x weights[column]
inline void add_scaled(float* sums, const float* weights, float number, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store(sums + i, load(sums + i) + load(weights + i) * number);
}

inline float dot(const float* left, const float* right, int64_t count) {
    Floats sum{};
    for (int64_t i = 0; i < count; i += kLanes) sum += load(left + i) * load(right + i);
    return horizontal_sum(sum);
}

// Widths are multiples of all vector lengths.
inline void multiply_heads(const HeadsCall& call, int64_t first_head, int64_t last_head) {
    alignas(64) float input[kMaxHeadRows][kMaxHeadWidth], sums[kMaxHeadRows][kMaxHeadWidth], weights[kMaxHeadWidth];
    const int64_t num_rows = call.num_rows, nbytes = number_nbytes(call.number);
    for (int64_t head = first_head; head < last_head; head++) {
        const uint8_t* matrix = call.weight + head * call.head_stride * nbytes;
        for (int64_t row = 0; row < num_rows; row++) {
            read_row(input[row], head_row(call.input, row, head), call.number, call.depth);
            for (int64_t i = 0; i < call.columns; i += kLanes) store(sums[row] + i, Floats{});
        }
        const int64_t count = call.by_columns ? call.columns : call.depth;
        const int64_t width = call.by_columns ? call.depth : call.columns;
        for (int64_t index = 0; index < count; index++) {
            read_row(weights, matrix + index * call.line_stride * nbytes, call.number, width);
            for (int64_t row = 0; row < num_rows; row++) {
                if (call.by_columns)
                    sums[row][index] = dot(input[row], weights, width);
                else
                    add_scaled(sums[row], weights, input[row][index], width);
            }
        }
        for (int64_t row = 0; row < num_rows; row++)
            write_row(head_row(call.out, row, head), call.number, sums[row], call.columns);
    }
}

}  // namespace
}  // namespace pagoda
