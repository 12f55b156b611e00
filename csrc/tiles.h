// The same products on AMX: 16 rows x 16 words of left factor times 16 x 16 words of right, in tile registers.
//
// Keys and values lie in pages as the instruction wants its right operand, so tiles are loaded straight from them. Two
// row tiles times two column tiles of sums use all eight registers: 0-3 sums, 4-5 left, 6-7 right. Written as inline
// assembly because the compiler's intrinsics take register numbers as literal tokens, not as template arguments.
#pragma once

#include "product.h"

namespace pagoda {
namespace {

constexpr int kTileWords = 16;
constexpr int kMinimumTileWords = 8;  // below, the dot instruction does better

// The largest part of `words` that divides it and fits a tile: tiles then need no tails.
inline int tile_part(int64_t words) {
    for (int part = kTileWords; part > 1; part--)
        if (words % part == 0) return part;
    return 1;
}

struct TileShape {
    int rows;
    int depth_words;
    int columns;
};

inline bool operator==(const TileShape& a, const TileShape& b) {
    return a.rows == b.rows && a.depth_words == b.depth_words && a.columns == b.columns;
}

struct alignas(64) TileConfig {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_nbytes[16];
    uint8_t rows[16];
};

inline void configure(const TileShape& shape) {
    TileConfig config{};
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        const bool is_left = tile == 4 || tile == 5, is_right = tile >= 6;
        config.rows[tile] = uint8_t(is_right ? shape.depth_words : shape.rows);
        config.row_nbytes[tile] = uint16_t(4 * (is_left ? shape.depth_words : shape.columns));
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
}

inline void release() { asm volatile("tilerelease"); }

template <int kTile>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
inline void tile_load(const void* data, int64_t row_nbytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(row_nbytes), "i"(kTile) : "memory");
}

template <int kTile>
inline void tile_store(void* data, int64_t row_nbytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(row_nbytes), "i"(kTile) : "memory");
}

// The kinds of numbers that tiles multiply: what a left row and a sum consist of, and the instruction.
struct Bf16Tiles {
    typedef Bf16 Factor;
    typedef float Total;

    template <int kSums, int kLeft, int kRight>
    static void dot() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
    }
};

struct SignedByteTiles {
    typedef uint8_t Factor;
    typedef int32_t Total;

    template <int kSums, int kLeft, int kRight>
    static void dot() {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
    }
};

struct UnsignedByteTiles {
    typedef uint8_t Factor;
    typedef int32_t Total;

    template <int kSums, int kLeft, int kRight>
    static void dot() {
        asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
    }
};

// As many bytes as a right tile has.
inline void prefetch_tile(const uint8_t* ahead, const TileShape& shape) {
    for (int row = 0; row < shape.depth_words; row++) prefetch(ahead + row * kLineNbytes);
}

template <class Tiles, int kRows, int kColumns>
void product_in_tiles(const Left<typename Tiles::Factor>& left, const Panels& right, int64_t column,
                      const Sums<typename Tiles::Total>& sums, const TileShape& shape) {
    constexpr bool kTwoRows = kRows == 2, kTwoColumns = kColumns == 2, kAll = kTwoRows && kTwoColumns;
    constexpr int kWordNumbers = 4 / sizeof(typename Tiles::Factor);
    typename Tiles::Total* sum = sums.data + column;
    const int64_t sum_nbytes = sums.stride * 4, left_nbytes = left.stride * int64_t(sizeof(typename Tiles::Factor));
    typename Tiles::Total* lower_sum = sum + kTileWords * sums.stride;
    if (sums.accumulate) {
        tile_load<0>(sum, sum_nbytes);
        if constexpr (kTwoColumns) tile_load<1>(sum + shape.columns, sum_nbytes);
        if constexpr (kTwoRows) tile_load<2>(lower_sum, sum_nbytes);
        if constexpr (kAll) tile_load<3>(lower_sum + shape.columns, sum_nbytes);
    } else {
        tile_zero<0>();
        if constexpr (kTwoColumns) tile_zero<1>();
        if constexpr (kTwoRows) tile_zero<2>();
        if constexpr (kAll) tile_zero<3>();
    }
    const typename Tiles::Factor* factor = left.data;
    for (int panel = 0; panel < right.count; panel++) {
        const uint8_t* words = right.data[panel] + column * 4;
        const uint8_t* ahead = right.ahead[panel] + column * 4 * right.depth_words;
        const bool asks_ahead = right.ahead[panel] != right.data[panel];
        for (int64_t depth = 0; depth < right.depth_words; depth += shape.depth_words) {
            tile_load<4>(factor, left_nbytes);
            tile_load<6>(words, right.row_nbytes);
            Tiles::template dot<0, 4, 6>();
            if (asks_ahead) prefetch_tile(ahead, shape);
            if constexpr (kTwoRows) tile_load<5>(factor + kTileWords * left.stride, left_nbytes);
            if constexpr (kTwoRows) Tiles::template dot<2, 5, 6>();
            if constexpr (kTwoColumns) tile_load<7>(words + shape.columns * 4, right.row_nbytes);
            if constexpr (kTwoColumns) Tiles::template dot<1, 4, 7>();
            if (kTwoColumns && asks_ahead) prefetch_tile(ahead + shape.depth_words * kLineNbytes, shape);
            if constexpr (kAll) Tiles::template dot<3, 5, 7>();
            factor += shape.depth_words * kWordNumbers;
            words += shape.depth_words * right.row_nbytes;
            ahead += kColumns * shape.depth_words * kLineNbytes;
        }
    }
    tile_store<0>(sum, sum_nbytes);
    if constexpr (kTwoColumns) tile_store<1>(sum + shape.columns, sum_nbytes);
    if constexpr (kTwoRows) tile_store<2>(lower_sum, sum_nbytes);
    if constexpr (kAll) tile_store<3>(lower_sum + shape.columns, sum_nbytes);
}

template <class Tiles, int kRows>
void product_of_row_tiles(const Left<typename Tiles::Factor>& left, const Panels& right,
                          const Sums<typename Tiles::Total>& sums, const TileShape& shape) {
    int64_t column = 0;
    for (; column + 2 * shape.columns <= right.columns; column += 2 * shape.columns)
        product_in_tiles<Tiles, kRows, 2>(left, right, column, sums, shape);
    if (column < right.columns) product_in_tiles<Tiles, kRows, 1>(left, right, column, sums, shape);
}

// `shape` is configured, and divides depth and columns; at most two tiles of rows, which are read and written whole.
template <class Tiles>
void product(const Left<typename Tiles::Factor>& left, const Panels& right, const Sums<typename Tiles::Total>& sums,
             const TileShape& shape) {
    if (left.rows > kTileWords)
        product_of_row_tiles<Tiles, 2>(left, right, sums, shape);
    else
        product_of_row_tiles<Tiles, 1>(left, right, sums, shape);
}

}  // namespace
}  // namespace pagoda
