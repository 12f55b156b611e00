// A linear layer on a few rows, on AMX: bound by reading the weights once, as they lie.
//
// Weights are the left factor: 16 rows of a row-major matrix are a left tile without any packing, so they are held once,
// as torch has them. The few rows of input are packed into right tiles. Each output adds its terms in the order of
// depth, whatever the number of rows, so a row's result does not depend on the batch it is in.
#pragma once

#include "tiles.h"

namespace pagoda {
namespace {

constexpr int64_t kTileDepth = 2 * kTileWords;
constexpr int64_t kRightTileNbytes = kTileWords * kTileWords * 4;
static_assert(kLinearBlockColumns == kTileWords && kLinearDepthMultiple == kTileDepth, "a block is a row of tiles");

inline int64_t input_tiles(const LinearCall& call) { return (call.rows + kTileWords - 1) / kTileWords; }

inline int64_t linear_scratch_nbytes(const LinearCall& call) {
    return call.depth / kTileDepth * input_tiles(call) * kRightTileNbytes;
}

// Right tiles in the order of use: per 32 of depth, one for each 16 rows of input; missing rows are zero.
inline void pack_input(const LinearCall& call, uint8_t* packed) {
    __builtin_memset(packed, 0, size_t(linear_scratch_nbytes(call)));
    const int64_t tiles = input_tiles(call);
    for (int64_t row = 0; row < call.rows; row++) {
        Word* column = reinterpret_cast<Word*>(packed + row / kTileWords * kRightTileNbytes) + row % kTileWords;
        const Word* words = reinterpret_cast<const Word*>(call.input + row * call.depth);
        for (int64_t depth = 0; depth < call.depth / 2; depth++) {
            const int64_t tile = depth / kTileWords * tiles;
            column[(tile * kTileWords + depth % kTileWords) * kTileWords] = words[depth];
        }
    }
}

// Sums [columns of a block, rows of a tile] of fp32, written out with the bias as bf16.
inline void write_block(const LinearCall& call, const float* sums, int64_t first_column, int64_t first_row) {
    const int64_t rows = call.rows - first_row < kTileWords ? call.rows - first_row : kTileWords;
    for (int64_t row = 0; row < rows; row++) {
        uint16_t* out = call.out + (first_row + row) * call.columns + first_column;
        for (int64_t column = 0; column < kLinearBlockColumns; column++) {
            const float bias = call.bias ? float_of_bf16(call.bias[first_column + column]) : 0.0f;
            out[column] = bf16_of_float(sums[column * kTileWords + row] + bias);
        }
    }
}

template <bool kTwoTiles>
void multiply_block(const LinearCall& call, const uint8_t* packed, int64_t block, bool asks_ahead, float* sums) {
    const int64_t stride = call.depth * 2;
    const uint8_t* weight = reinterpret_cast<const uint8_t*>(call.weight) + block * kLinearBlockColumns * stride;
    const uint8_t* ahead = weight + kLinearBlockColumns * stride;  // the next block follows without a gap
    constexpr int64_t kSumNbytes = kTileWords * 4;
    tile_zero<0>();
    if constexpr (kTwoTiles) tile_zero<1>();
    for (int64_t depth = 0; depth < call.depth; depth += kTileDepth) {
        tile_load<4>(weight, stride);
        tile_load<6>(packed, kSumNbytes);
        tile_dot<0, 4, 6>();
        if constexpr (kTwoTiles) tile_load<7>(packed + kRightTileNbytes, kSumNbytes);
        if constexpr (kTwoTiles) tile_dot<1, 4, 7>();
        if (asks_ahead)
            for (int line = 0; line < kTileWords; line++) prefetch(ahead + line * kLineNbytes);
        weight += kTileDepth * 2;
        ahead += kTileWords * kLineNbytes;
        packed += (kTwoTiles ? 2 : 1) * kRightTileNbytes;
    }
    tile_store<0>(sums, kSumNbytes);
    if constexpr (kTwoTiles) tile_store<1>(sums + kTileWords * kTileWords, kSumNbytes);
}

// Output columns [first_block, last_block) of kLinearBlockColumns each.
inline void linear(const LinearCall& call, const uint8_t* packed, int64_t first_block, int64_t last_block) {
    alignas(64) float sums[2 * kTileWords * kTileWords];
    configure({kTileWords, kTileWords, kTileWords});
    for (int64_t block = first_block; block < last_block; block++) {
        const bool asks_ahead = block + 1 < last_block;
        if (input_tiles(call) == 2)
            multiply_block<true>(call, packed, block, asks_ahead, sums);
        else
            multiply_block<false>(call, packed, block, asks_ahead, sums);
        for (int64_t tile = 0; tile < input_tiles(call); tile++)
            write_block(call, sums + tile * kTileWords * kTileWords, block * kLinearBlockColumns, tile * kTileWords);
    }
    release();
}

}  // namespace
}  // namespace pagoda
