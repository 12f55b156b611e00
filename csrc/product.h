// Products of a few rows with word panels of a page: sums [rows, columns] (+)= left [rows, depth] x right [depth,
// columns].
//
// Attention is two of them. Scores: queries times keys, columns are tokens and depth is channels. Values: weights times
// values, columns are channels and depth is tokens. The page layout makes both the same loop over 32-bit words. Sums
// of a few rows and columns stay in registers; each element adds its terms in the order of depth, whatever the tiling.
#pragma once

#include "prefetch.h"
#include "words.h"

namespace pagoda {
namespace {

// Right factor: `count` panels, one below the other, each [depth_words, columns] words at a distance of `row_nbytes`.
// While a panel is read, as many bytes are asked for from its entry of `ahead`: evenly, since a burst of requests would
// stop the arithmetic until the last is on its way, and by hand, since pages are scattered. An entry that equals
// `data`'s asks for nothing.
struct Panels {
    const uint8_t* const* data;
    const uint8_t* const* ahead;
    int count;
    int64_t depth_words;
    int64_t row_nbytes;
    int64_t columns;
};

template <class Factor>
struct Left {
    const Factor* data;
    int64_t stride;
    int rows;
};

template <class Total>
struct Sums {
    Total* data;
    int64_t stride;
    bool accumulate;
};

// Sums held in registers at a time: 16 of the 32 registers of AVX-512, 8 of 16 elsewhere.
constexpr int kRegisterRows = kLanes == 16 ? 8 : 4;
constexpr int kRegisterColumns = 2;

template <class Words, int kRows, int kColumns, bool kPartial>
void product_in_registers(const Left<typename Words::Factor>& left, const Panels& right, int64_t column,
                          const Sums<typename Words::Total>& sums) {
    constexpr int64_t kStepNbytes = kColumns * kLanes * 4;
    typedef decltype(load(sums.data)) Totals;
    const int lanes = kPartial ? int(right.columns - column) : kLanes;
    Totals sum[kRows][kColumns];
    for (int row = 0; row < kRows; row++)
        for (int vector = 0; vector < kColumns; vector++)
            sum[row][vector] =
                sums.accumulate ? load(sums.data + row * sums.stride + column + vector * kLanes) : Totals{};
    const typename Words::Factor* factor = left.data;
    for (int panel = 0; panel < right.count; panel++) {
        const uint8_t* words = right.data[panel] + column * 4;
        const uint8_t* ahead = right.ahead[panel] + column * 4 * right.depth_words;
        for (int64_t depth = 0; depth < right.depth_words; depth++) {
            for (int64_t line = 0; line < kStepNbytes; line += kLineNbytes) prefetch_first(ahead + line);
            typename Words::Right vectors[kColumns];
            for (int vector = 0; vector < kColumns; vector++)
                vectors[vector] = Words::expand(kPartial ? load_words(words, lanes)
                                                         : load_words(words + vector * kLanes * 4));
            for (int row = 0; row < kRows; row++)
                for (int vector = 0; vector < kColumns; vector++)
                    Words::add(sum[row][vector], factor + row * left.stride, vectors[vector]);
            words += right.row_nbytes;
            ahead += kStepNbytes;
            factor += Words::kNumbers;
        }
    }
    for (int row = 0; row < kRows; row++)
        for (int vector = 0; vector < kColumns; vector++)
            store(sums.data + row * sums.stride + column + vector * kLanes, sum[row][vector]);
}

template <class Words, int kRows>
void product_of_rows(const Left<typename Words::Factor>& left, const Panels& right,
                     const Sums<typename Words::Total>& sums) {
    if constexpr (kRows > 1)
        if (left.rows < kRows) return product_of_rows<Words, kRows - 1>(left, right, sums);
    int64_t column = 0;
    for (; column + kRegisterColumns * kLanes <= right.columns; column += kRegisterColumns * kLanes)
        product_in_registers<Words, kRows, kRegisterColumns, false>(left, right, column, sums);
    for (; column + kLanes <= right.columns; column += kLanes)
        product_in_registers<Words, kRows, 1, false>(left, right, column, sums);
    if (column < right.columns) product_in_registers<Words, kRows, 1, true>(left, right, column, sums);
}

// Columns of `sums` are read and written up to a whole vector.
template <class Words>
void product(Left<typename Words::Factor> left, const Panels& right, Sums<typename Words::Total> sums) {
    while (left.rows > 0) {
        product_of_rows<Words, kRegisterRows>(left, right, sums);
        left.data += kRegisterRows * left.stride;
        sums.data += kRegisterRows * sums.stride;
        left.rows -= kRegisterRows;
    }
}

}  // namespace
}  // namespace pagoda
