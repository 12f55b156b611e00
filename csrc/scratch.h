// The memory of one thread while it works on a tile.
//
// Knows sizes only. Strides are padded: rows begin on cache lines, and do not fall into the same cache sets.
#pragma once

#include "block.h"
#include "product.h"
#include "softmax.h"

namespace pagoda {
namespace {

// Rows that go through scores, softmax and values together: two tile registers of them.
constexpr int64_t kBandRows = 32;
constexpr int64_t kScoreStride = kBlockTokens + 16;
constexpr int64_t kWeightStride = kBlockTokens + 32;

inline int64_t query_stride(const AttendCall& call) { return rounded_up(call.pages.key.width, 32); }

struct Scratch {
    void* query;  // [kTileRows, query_stride] left factors
    void* weights;  // [kBandRows, kWeightStride] left factors
    float* scores;  // [kBandRows, kScoreStride]
    float* row;  // one row of results
    Accumulator split;
    Accumulator total;
    Room room;
    // Of codes: of the tokens of a block, of the queries of a tile, of the rows of a band.
    TokenLevels key_levels;
    TokenLevels value_levels;
    float* query_sums;
    float* shifts;
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
    Scratch scratch;
    scratch.query = cursor.take<float>(kTileRows * query_stride(call));
    scratch.weights = cursor.take<float>(kBandRows * kWeightStride);
    scratch.scores = cursor.take<float>(kBandRows * kScoreStride);
    scratch.row = cursor.take<float>(value_stride(call));
    scratch.split = take_accumulator(cursor, value_stride(call));
    scratch.total = take_accumulator(cursor, value_stride(call));
    const Pages& pages = call.pages;
    scratch.room.edges = cursor.take<uint8_t>(2 * value_panel_nbytes(pages));
    scratch.room.keys = cursor.take<uint8_t>(has_codes(pages.key) ? kBlockTokens * pages.key.width * 2 : 0);
    // The last row is written up to a whole vector.
    scratch.room.values =
        cursor.take<uint8_t>(has_codes(pages.value) ? kBlockTokens * pages.value.width * 2 + kLineNbytes : 0);
    scratch.key_levels = {cursor.take<float>(kBlockTokens), cursor.take<float>(kBlockTokens)};
    scratch.value_levels = {cursor.take<float>(kBlockTokens), cursor.take<float>(kBlockTokens)};
    scratch.query_sums = cursor.take<float>(kTileRows);
    scratch.shifts = cursor.take<float>(kBandRows);
    return scratch;
}

inline int64_t scratch_nbytes(const AttendCall& call) {
    Cursor cursor{nullptr, 0};
    lay_out(call, cursor);
    return cursor.nbytes;
}

}  // namespace
}  // namespace pagoda
