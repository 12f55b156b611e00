// The memory of one thread while it works on a tile.
//
// Knows sizes only. Strides are padded: rows begin on cache lines, and do not fall into the same cache sets.
#pragma once

#include "block.h"
#include "encoding.h"
#include "softmax.h"

namespace pagoda {
namespace {

// Rows that go through scores, softmax and values together: two tile registers of them, or of their parts.
constexpr int64_t kBandRows = 32;
constexpr int64_t kScoreStride = kBlockTokens + 16;
constexpr int64_t kWeightStride = kBlockTokens + 32;

inline int64_t query_stride(const AttendCall& call) { return rounded_up(call.pages.key.width, 32); }

struct Scratch {
    void* query;  // [kTileRows, query_stride] left factors, or two bytes each
    void* weights;  // [kBandRows, kWeightStride] left factors, or bytes
    float* scores;  // [kBandRows, kScoreStride]
    float* row;  // one row of queries or results
    Accumulator split;
    Accumulator total;
    uint8_t* edges;  // two value panels
    // Of codes: decoded planes of a block, one panel of bytes, scales of the tokens of a block, steps of a panel's groups.
    // Of latents: values of a block, and one decoded panel of keys.
    uint8_t* keys;
    uint8_t* values;
    uint8_t* bytes;
    uint8_t* latents;
    float* key_scales;
    float* value_scales;
    int32_t* steps;
    // Of rows that meet codes: scales of queries as bytes and sums of queries in a tile; what the weights of a band are
    // in units of; sums of the parts of a band, of scores or values.
    float* query_scales;
    float* query_sums;
    float* units;
    float* query_turns;  // [kTileRows, 2 * KeyConstants::kMostPairs], see lifts.h
    int32_t* parts;
    int64_t parts_stride;
};

struct Cursor {
    uint8_t* base;
    int64_t nbytes;

    template <class T>
    T* take(int64_t count) {
        T* result = reinterpret_cast<T*>(base + nbytes);
        nbytes += rounded_up(count * int64_t(sizeof(T)), 64);
        return result;
    }
};

inline Accumulator take_accumulator(Cursor& cursor, int64_t stride) {
    float* maximum = cursor.take<float>(kTileRows);
    float* sum = cursor.take<float>(kTileRows);
    return {maximum, sum, cursor.take<float>(kTileRows * stride), stride};
}

// Left factors are at most floats, whatever the arithmetic.
inline Scratch lay_out(const AttendCall& call, Cursor& cursor) {
    const Pages& pages = call.pages;
    const bool keys_are_codes = has_codes(pages.key), values_are_codes = has_codes(pages.value);
    const bool any_codes = keys_are_codes || values_are_codes;
    const int64_t widest = pages.key.width > pages.value.width ? pages.key.width : pages.value.width;
    Scratch scratch;
    scratch.query = cursor.take<float>(kTileRows * query_stride(call));
    scratch.weights = cursor.take<float>(kBandRows * kWeightStride);
    scratch.scores = cursor.take<float>(kBandRows * kScoreStride);
    scratch.row = cursor.take<float>(rounded_up(widest, 16));
    scratch.split = take_accumulator(cursor, value_stride(call));
    scratch.total = take_accumulator(cursor, value_stride(call));
    scratch.edges = cursor.take<uint8_t>(2 * value_panel_nbytes(pages));
    // Last rows are written up to a whole vector.
    scratch.keys = cursor.take<uint8_t>(keys_are_codes ? kBlockTokens * pages.key.width * 2 : 0);
    const bool has_values = values_are_codes || pages.values_in_keys;
    scratch.values = cursor.take<uint8_t>(has_values ? kBlockTokens / panel_tokens(pages) * value_panel_nbytes(pages) +
                                                           kLineNbytes
                                                     : 0);
    scratch.bytes = cursor.take<uint8_t>(any_codes ? panel_tokens(pages) * widest + kLineNbytes : 0);
    scratch.latents =
        cursor.take<uint8_t>(any_codes && pages.values_in_keys ? panel_tokens(pages) * widest * 2 + kLineNbytes : 0);
    scratch.key_scales = cursor.take<float>(kBlockTokens);
    scratch.value_scales = cursor.take<float>(kBlockTokens);
    scratch.steps = cursor.take<int32_t>(steps_words(num_groups(pages.value)));
    scratch.query_scales = cursor.take<float>(kTileRows);
    scratch.query_sums = cursor.take<float>(kTileRows);
    scratch.units = cursor.take<float>(kBandRows);
    scratch.query_turns = cursor.take<float>(pages.constants.scales ? kTileRows * 2 * KeyConstants::kMostPairs : 0);
    scratch.parts_stride = value_stride(call) > kScoreStride ? value_stride(call) : kScoreStride;
    scratch.parts = cursor.take<int32_t>(any_codes ? kBandRows * scratch.parts_stride : 0);
    return scratch;
}

inline int64_t scratch_nbytes(const AttendCall& call) {
    Cursor cursor{nullptr, 0};
    lay_out(call, cursor);
    return cursor.nbytes;
}

}  // namespace
}  // namespace pagoda
