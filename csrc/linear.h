// A linear layer on AMX, for any number of rows, from weights as they lie.
//
// Weights are the left factor: 16 rows of a row-major matrix are a left tile without any packing, so they are held once,
// as torch has them. Input is packed into right tiles, a panel of 32 rows at a time. Each output adds its terms in the
// order of depth, whatever the number of rows, so a row's result does not depend on the batch it is in.
#pragma once

#include "pointwise.h"
#include "tiles.h"
#include "transpose.h"

namespace pagoda {
namespace {

constexpr int64_t kTileDepth = 2 * kTileWords;
constexpr int64_t kRightTileNbytes = kTileWords * kTileWords * 4;
constexpr int64_t kSumNbytes = kTileWords * 4;
static_assert(kLinearBlockColumns == kTileWords && kLinearDepthMultiple == kTileDepth, "a block is a row of tiles");
static_assert(kLinearPanelRows == 2 * kTileWords, "a panel is two tiles");

// Weights of 32 columns and this depth stay in the first cache while all panels of input go by.
constexpr int64_t kWideDepth = 448;

inline int64_t input_tiles(int64_t rows) { return (rows + kTileWords - 1) / kTileWords; }
inline int64_t first_rows(int64_t rows, int64_t most) { return rows < most ? rows : most; }

// Rows of one panel in the order of use: per 32 of depth, `tiles` right tiles of 16 rows; missing rows are zero.
inline void pack_panel(const LinearCall& call, int64_t first_row, int64_t tiles, uint8_t* packed) {
    for (int64_t depth = 0; depth < call.depth; depth += kTileDepth)
        for (int64_t tile = 0; tile < tiles; tile++, packed += kRightTileNbytes) {
            const int64_t row = first_row + tile * kTileWords;
            const uint8_t* source = call.input + (row * call.depth + depth) * 2;
            transpose_words(source, call.depth * 2, int(call.rows - row), packed);
        }
}

inline void write_columns(const LinearCall& call, Words16& columns, int64_t first_column, int64_t first_row) {
    transpose(columns);
    const int64_t rows = first_rows(call.rows - first_row, kTileWords);
    for (int64_t row = 0; row < rows; row++)
        store_bf16(reinterpret_cast<Bf16*>(call.out) + (first_row + row) * call.columns + first_column,
                   reinterpret_cast<Floats>(columns.row[row]));
}

// Sums [columns of a block, rows of a tile] of fp32, written out with the bias as bf16.
inline void write_block(const LinearCall& call, const float* sums, int64_t first_column, int64_t first_row) {
    Words16 columns;
    for (int64_t column = 0; column < kLinearBlockColumns; column++) {
        const Bf16* biases = reinterpret_cast<const Bf16*>(call.bias);
        const float bias = biases ? float_of_bf16(biases[first_column + column]) : 0.0f;
        columns.row[column] = reinterpret_cast<Ints>(load(sums + column * kTileWords) + bias);
    }
    write_columns(call, columns, first_column, first_row);
}

inline Floats rounded_to_bf16(Floats values) {
    return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16_of(values)), 16));
}

// As `write_block`, of silu(gate) * up: each of the three is rounded, as if it were written and read again.
inline void write_gated_block(const LinearCall& call, const float* gates, const float* ups, int64_t first_column,
                              int64_t first_row) {
    Words16 columns;
    for (int64_t column = 0; column < kLinearBlockColumns; column++) {
        const Floats gate = rounded_to_bf16(load(gates + column * kTileWords));
        const Floats up = rounded_to_bf16(load(ups + column * kTileWords));
        columns.row[column] = reinterpret_cast<Ints>(rounded_to_bf16(silu(gate)) * up);
    }
    write_columns(call, columns, first_column, first_row);
}

template <bool kTwoTiles>
void multiply_block(const LinearCall& call, const uint8_t* packed, int64_t block, bool asks_ahead, float* sums) {
    const int64_t stride = call.depth * 2;
    const uint8_t* weight = call.weight + block * kLinearBlockColumns * stride;
    const uint8_t* ahead = weight + kLinearBlockColumns * stride;  // the next block follows without a gap
    tile_zero<0>();
    if constexpr (kTwoTiles) tile_zero<1>();
    for (int64_t depth = 0; depth < call.depth; depth += kTileDepth) {
        tile_load<4>(weight, stride);
        tile_load<6>(packed, kSumNbytes);
        Bf16Tiles::dot<0, 4, 6>();
        if constexpr (kTwoTiles) tile_load<7>(packed + kRightTileNbytes, kSumNbytes);
        if constexpr (kTwoTiles) Bf16Tiles::dot<1, 4, 7>();
        if (asks_ahead)
            for (int line = 0; line < kTileWords; line++) prefetch(ahead + line * kLineNbytes);
        weight += kTileDepth * 2;
        ahead += kTileWords * kLineNbytes;
        packed += (kTwoTiles ? 2 : 1) * kRightTileNbytes;
    }
    tile_store<0>(sums, kSumNbytes);
    if constexpr (kTwoTiles) tile_store<1>(sums + kTileWords * kTileWords, kSumNbytes);
}

// One panel of input: bound by reading the weights. Output columns [first_block, last_block) of kLinearBlockColumns.
inline void linear(const LinearCall& call, const uint8_t* packed, int64_t first_block, int64_t last_block) {
    alignas(64) float sums[2 * kTileWords * kTileWords];
    configure({kTileWords, kTileWords, kTileWords});
    for (int64_t block = first_block; block < last_block; block++) {
        const bool asks_ahead = block + 1 < last_block;
        if (input_tiles(call.rows) == 2)
            multiply_block<true>(call, packed, block, asks_ahead, sums);
        else
            multiply_block<false>(call, packed, block, asks_ahead, sums);
        for (int64_t tile = 0; tile < input_tiles(call.rows); tile++)
            write_block(call, sums + tile * kTileWords * kTileWords, block * kLinearBlockColumns, tile * kTileWords);
    }
    release();
}

// Input is read from the second cache, and tile loads do not look ahead: lines of this many steps later are asked for.
constexpr int64_t kStepsAhead = 4;

// Sums [two blocks][two tiles][columns of a block, rows of a tile], begun or gone on with. `other` is the weight of the
// second block.
template <bool kTwoBlocks>
void multiply_panel(const uint8_t* weight, const uint8_t* other, int64_t stride, const uint8_t* packed, int64_t depth,
                    bool begins, float* sums) {
    constexpr int64_t kTileSums = kTileWords * kTileWords;
    if (begins) {
        tile_zero<0>();
        tile_zero<1>();
        if constexpr (kTwoBlocks) tile_zero<2>();
        if constexpr (kTwoBlocks) tile_zero<3>();
    } else {
        tile_load<0>(sums, kSumNbytes);
        tile_load<1>(sums + kTileSums, kSumNbytes);
        if constexpr (kTwoBlocks) tile_load<2>(sums + 2 * kTileSums, kSumNbytes);
        if constexpr (kTwoBlocks) tile_load<3>(sums + 3 * kTileSums, kSumNbytes);
    }
    for (int64_t done = 0; done < depth; done += kTileDepth) {
        tile_load<4>(weight, stride);
        tile_load<6>(packed, kSumNbytes);
        Bf16Tiles::dot<0, 4, 6>();
        tile_load<7>(packed + kRightTileNbytes, kSumNbytes);
        Bf16Tiles::dot<1, 4, 7>();
        if constexpr (kTwoBlocks) tile_load<5>(other, stride);
        if constexpr (kTwoBlocks) Bf16Tiles::dot<2, 5, 6>();
        if constexpr (kTwoBlocks) Bf16Tiles::dot<3, 5, 7>();
        for (int64_t line = 0; line < 2 * kRightTileNbytes; line += kLineNbytes)
            prefetch_first(packed + kStepsAhead * 2 * kRightTileNbytes + line);
        weight += kTileDepth * 2;
        other += kTileDepth * 2;
        packed += 2 * kRightTileNbytes;
    }
    tile_store<0>(sums, kSumNbytes);
    tile_store<1>(sums + kTileSums, kSumNbytes);
    if constexpr (kTwoBlocks) tile_store<2>(sums + 2 * kTileSums, kSumNbytes);
    if constexpr (kTwoBlocks) tile_store<3>(sums + 3 * kTileSums, kSumNbytes);
}

template <bool kTwoBlocks>
void multiply_panels(const LinearCall& call, const uint8_t* packed, int64_t first_block, float* sums) {
    constexpr int64_t kTileSums = kTileWords * kTileWords;
    const int64_t stride = call.depth * 2, panels = (call.rows + kLinearPanelRows - 1) / kLinearPanelRows;
    const int64_t block_nbytes = kLinearBlockColumns * stride;
    const uint8_t* weight = call.weight + first_block * block_nbytes;
    const uint8_t* up = call.up + first_block * block_nbytes;
    const uint8_t* other = call.up ? up : weight + block_nbytes;
    for (int64_t depth = 0; depth < call.depth; depth += kWideDepth) {
        const int64_t count = first_rows(call.depth - depth, kWideDepth);
        for (int64_t panel = 0; panel < panels; panel++)
            multiply_panel<kTwoBlocks>(weight + depth * 2, other + depth * 2, stride,
                                       packed + (panel * call.depth + depth) * kLinearPanelRows * 2, count, depth == 0,
                                       sums + panel * 4 * kTileSums);
    }
    for (int64_t tile = 0; tile < 2 * panels; tile++) {
        const int64_t row = tile * kTileWords, column = first_block * kLinearBlockColumns;
        const float* first = sums + (tile / 2 * 4 + tile % 2) * kTileSums;
        if (row >= call.rows) break;
        if (call.up)
            write_gated_block(call, first, first + 2 * kTileSums, column, row);
        else
            write_block(call, first, column, row);
        if (kTwoBlocks && !call.up) write_block(call, first + 2 * kTileSums, column + kLinearBlockColumns, row);
    }
}

// Several panels of input, packed one after the other with room for whole ones: bound by arithmetic. `sums` has room
// for kLinearPanelSums a panel.
inline void linear_wide(const LinearCall& call, const uint8_t* packed, int64_t first_block, int64_t last_block,
                        float* sums) {
    configure({kTileWords, kTileWords, kTileWords});
    int64_t block = first_block;
    for (; call.up && block < last_block; block++) multiply_panels<true>(call, packed, block, sums);
    for (; block + 1 < last_block; block += 2) multiply_panels<true>(call, packed, block, sums);
    if (block < last_block) multiply_panels<false>(call, packed, block, sums);
    release();
}

}  // namespace
}  // namespace pagoda
