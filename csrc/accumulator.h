// Sums of a tile's rows: started, folded split by split in order, divided and written out.
//
// Does not know pages or where the sums came from. Folding the first split into an empty total changes no bit.
#pragma once

#include "hadamard.h"
#include "scratch.h"

namespace pagoda {
namespace {

inline void clear(const Accumulator& sums, int64_t rows) {
    for (int64_t row = 0; row < rows; row++) {
        sums.maximum[row] = kNegativeInfinity;
        sums.sum[row] = 0.0f;
    }
    __builtin_memset(sums.values, 0, size_t(rows * sums.stride) * sizeof(float));
}

// total += part; both are relative to their own maximum. Never inlined: were it, two copies might fuse different
// products with the sum, and the result would depend on how a context is split over threads.
__attribute__((noinline)) void fold_row(const Accumulator& total, int64_t row, float maximum, float sum,
                                        const float* values) {
    if (sum == 0.0f) return;
    const float before = total.maximum[row];
    const float after = maximum > before ? maximum : before;
    const float total_factor = exp2_of(before - after), factor = exp2_of(maximum - after);
    float* total_values = total.values + row * total.stride;
    for (int64_t channel = 0; channel < total.stride; channel += kLanes)
        store(total_values + channel, load(total_values + channel) * total_factor + load(values + channel) * factor);
    total.sum[row] = total.sum[row] * total_factor + sum * factor;
    total.maximum[row] = after;
}

inline void save_partial(const AttendCall& call, const Accumulator& sums, int64_t rows, float* partial) {
    for (int64_t row = 0; row < rows; row++, partial += partial_floats(call)) {
        partial[0] = sums.maximum[row];
        partial[1] = sums.sum[row];
        __builtin_memcpy(partial + 2, sums.values + row * sums.stride, size_t(sums.stride) * sizeof(float));
    }
}

// What turns sums into results: one over the sum of weights, the weight of the head's sink included.
inline float normaliser(const AttendCall& call, const Accumulator& sums, int64_t row, int64_t head) {
    if (!call.sinks) return 1.0f / sums.sum[row];
    const float sink = call.sinks[head] * kLog2E, before = sums.maximum[row];
    const float after = sink > before ? sink : before;
    const float factor = exp2_of(before - after);
    return factor / (sums.sum[row] * factor + exp2_of(sink - after));
}

// Row `row` of a tile: which new token of which sequence, and which query head.
struct RowPlace {
    int64_t sequence;
    int64_t token;
    int64_t head;
};

inline RowPlace place_of(const AttendCall& call, const Tile& tile, int64_t row) {
    const int64_t group = group_heads(call), index = tile.first_row + row;
    const int64_t head = tile.kv_head * group + index % group;
    if (tile.sharers) return {tile.sharers[index / group], 0, head};
    return {tile.sequence, index / group, head};
}

// Among all rows of a call on one sequence.
inline int64_t row_index(const AttendCall& call, const RowPlace& place) {
    return place.head * new_tokens(call.tables, place.sequence) + place.token;
}

inline uint8_t* row_data(const AttendCall& call, const Rows& rows, const RowPlace& place) {
    const int64_t token = call.tables.query_starts[place.sequence] + place.token;
    return rows.data + (token * rows.row_stride + place.head * rows.head_stride) * number_nbytes(rows.number);
}

// Latents are values that were kept as keys are. Their channels are not rotated, so bases are those of any page.
inline void give_back(const AttendCall& call, int64_t kv_head, float weights, float* latent) {
    const KeyConstants& constants = call.pages.constants;
    const int64_t width = call.pages.value.width;
    const float* scales = constants.scales + kv_head * call.pages.key.width;
    for (int64_t channel = 0; channel < width; channel++) latent[channel] *= scales[channel];
    for (int64_t i = 0; i < constants.num_pairs; i++) {
        const BasedPair pair = based_pair(constants, kv_head, i);
        if (pair.first < width) latent[pair.first] += pair.base_first * weights;
        if (pair.second < width) latent[pair.second] += pair.base_second * weights;
    }
}

inline void write_out(const AttendCall& call, const Tile& tile, const Accumulator& sums, float* result) {
    for (int64_t row = 0; row < tile.num_rows; row++) {
        const RowPlace place = place_of(call, tile, row);
        const float factor = normaliser(call, sums, row, place.head);
        for (int64_t channel = 0; channel < call.pages.value.width; channel++)
            result[channel] = sums.values[row * sums.stride + channel] * factor;
        hadamard(result, call.pages.value);
        if (call.pages.values_in_keys && call.pages.constants.scales)
            give_back(call, tile.kv_head, sums.sum[row] * factor, result);
        write_row(row_data(call, call.out, place), call.out.number, result, call.pages.value.width);
    }
}

}  // namespace
}  // namespace pagoda
