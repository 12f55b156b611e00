// How high the scores of a page's tokens can be: of its keys, the largest and the smallest number of each channel, and what
// a query makes of these (Quest, arXiv 2406.10774).
//
// Knows one page at a time. Keys are taken as they are kept, for queries that were turned and scaled to meet such keys.
#pragma once

#include "keys.h"

namespace pagoda {
namespace {

// Numbers of a word row of keys, each a vector of tokens.
inline Pair numbers_of(Fp32Words, const uint8_t* words) { return {Fp32Words::expand(load_words(words)), Floats{}}; }
inline Pair numbers_of(Fp16Words, const uint8_t* words) { return Fp16Words::expand(load_words(words)); }
inline Pair numbers_of(Bf16Words, const uint8_t* words) { return Bf16Words::expand(load_words(words)); }

inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

inline float horizontal_minimum(Floats values) {
    float result = values[0];
    for (int lane = 1; lane < kLanes; lane++) result = values[lane] < result ? values[lane] : result;
    return result;
}

// bf16 at or above a number, and at or below it. A number that is none stays none.
inline Bf16 bf16_rounded(float value, bool up) {
    const uint32_t bits = bits_of_float(value);
    const bool is_negative = bits >> 31, moves = (bits & 0xffff) && is_negative != up;
    return value != value ? Bf16(0x7fc0) : Bf16((bits >> 16) + moves);
}

// What the keys of a page reach: the largest number of each channel, and the smallest.
struct KeyReaches {
    float* highest;
    float* lowest;
};

// Rows of `word_nbytes` x tokens of one panel; `scales` of its tokens, or null.
template <class Words>
void widen_reaches(const uint8_t* words, int64_t row_nbytes, int64_t tokens, int64_t width, const float* scales,
                   const KeyReaches& reaches) {
    for (int64_t channel = 0; channel < width; channel += Words::kNumbers, words += row_nbytes) {
        Pair highest = {splat(reaches.highest[channel]), splat(reaches.highest[channel + Words::kNumbers - 1])};
        Pair lowest = {splat(reaches.lowest[channel]), splat(reaches.lowest[channel + Words::kNumbers - 1])};
        for (int64_t token = 0; token < tokens; token += kLanes) {
            Pair numbers = numbers_of(Words{}, words + token * 4);
            if (scales) numbers = {numbers.even * load(scales + token), numbers.odd * load(scales + token)};
            highest = {maximum(highest.even, numbers.even), maximum(highest.odd, numbers.odd)};
            lowest = {minimum(lowest.even, numbers.even), minimum(lowest.odd, numbers.odd)};
        }
        reaches.highest[channel] = horizontal_maximum(highest.even);
        reaches.lowest[channel] = horizontal_minimum(lowest.even);
        if (Words::kNumbers == 1) continue;
        reaches.highest[channel + 1] = horizontal_maximum(highest.odd);
        reaches.lowest[channel + 1] = horizontal_minimum(lowest.odd);
    }
}

inline void widen_reaches(const Pages& pages, const Block& block, const Scratch& scratch, const KeyReaches& reaches) {
    const int64_t tokens = panel_tokens(pages), width = pages.key.width;
    if (has_codes(pages.key)) {
        decode_keys(pages, block, 0, Ahead{}, scratch.bytes, scratch.keys);
        read_row(scratch.key_scales, block.key_levels[0].scales, Number::bf16, tokens);
        return widen_reaches<Bf16Words>(scratch.keys, tokens * 4, tokens, width, scratch.key_scales, reaches);
    }
    switch (pages.number) {
        case Number::fp32:
            return widen_reaches<Fp32Words>(block.key[0], key_row_nbytes(pages), tokens, width, nullptr, reaches);
        case Number::fp16:
            return widen_reaches<Fp16Words>(block.key[0], key_row_nbytes(pages), tokens, width, nullptr, reaches);
        case Number::bf16:
            return widen_reaches<Bf16Words>(block.key[0], key_row_nbytes(pages), tokens, width, nullptr, reaches);
    }
}

// Writes the summary of a full page for each KV head.
inline void summarise(const AttendCall& call, int64_t page, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const Scratch scratch = lay_out(call, cursor);
    const Pages& pages = call.pages;
    const int64_t width = pages.key.width, stride = summary_stride(pages);
    const KeyReaches reaches{scratch.scores, scratch.scores + width};
    for (int64_t head = 0; head < pages.num_kv_heads; head++) {
        fill(reaches.highest, {0, int(width)}, kNegativeInfinity);
        fill(reaches.lowest, {0, int(width)}, -kNegativeInfinity);
        for (int64_t offset = 0; offset < pages.page_tokens; offset += panel_tokens(pages)) {
            Block block;
            find_keys(pages, own_cell(pages, page, head), offset, 0, block);
            widen_reaches(pages, block, scratch, reaches);
        }
        Bf16* summary = pages.summaries.numbers + (page * pages.num_kv_heads + head) * stride;
        for (int64_t channel = 0; channel < width; channel++) {
            summary[channel] = bf16_rounded(reaches.highest[channel], true);
            summary[width + channel] = bf16_rounded(reaches.lowest[channel], false);
        }
        for (int64_t i = 2 * width; i < stride; i++) summary[i] = 0;
    }
}

// A query as it meets summaries: what is above zero the highest keys, what is below it the lowest. Of each two vectors of
// numbers, first those at even places and then those at odd ones, as words of bf16 are taken apart.
inline void order_query(const float* query, int64_t width, int64_t stride, float* target) {
    constexpr int64_t kRun = 2 * kLanes;
    for (int64_t i = 0; i < stride; i++) {
        float number = 0.0f;
        if (i < width && !(query[i] < 0.0f)) number = query[i];
        if (i >= width && i < 2 * width && query[i - width] < 0.0f) number = query[i - width];
        target[i / kRun * kRun + i % 2 * kLanes + i % kRun / 2] = number;
    }
}

inline float sum_of_lanes(Floats values) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m128 halves = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    const __m128 pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
#else
    return horizontal_sum(values);
#endif
}

// The largest product of one of `kRows` ordered queries, `stride` apart, with a summary.
template <int kRows>
float largest_product(const float* queries, const Bf16* summary, int64_t stride) {
    Floats sums[kRows]{};
    for (int64_t i = 0; i < stride; i += 2 * kLanes) {
        const Pair numbers = Bf16Words::expand(load_words(reinterpret_cast<const uint8_t*>(summary + i)));
        for (int row = 0; row < kRows; row++) {
            sums[row] += load(queries + row * stride + i) * numbers.even;
            sums[row] += load(queries + row * stride + i + kLanes) * numbers.odd;
        }
    }
    float largest = sum_of_lanes(sums[0]);
    for (int row = 1; row < kRows; row++) {
        const float sum = sum_of_lanes(sums[row]);
        if (!(sum <= largest)) largest = sum;
    }
    return largest;
}

constexpr int64_t kBoundRows = 4;

inline float largest_of_rows(const float* queries, int64_t rows, const Bf16* summary, int64_t stride) {
    switch (rows) {
        case 1: return largest_product<1>(queries, summary, stride);
        case 2: return largest_product<2>(queries, summary, stride);
        case 3: return largest_product<3>(queries, summary, stride);
        default: return largest_product<kBoundRows>(queries, summary, stride);
    }
}

inline void keep_larger(float& bound, float other) {
    if (!(other <= bound)) bound = other;
}

// With what the keys of each page have in common: row by row, many pages at once.
inline void bound_lifted(const Lifts& lifts, const float* queries, int64_t rows, int64_t stride, int64_t first_page,
                         const Bf16* const* summaries, int64_t count, float* bounds) {
    float of_pages[kBoundPages + kLanes];
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < count; i += kLanes) store(of_pages + i, lifts.of_pages(row, first_page + i));
        for (int64_t i = 0; i < count; i++)
            keep_larger(bounds[i], largest_product<1>(queries + row * stride, summaries[i], stride) + of_pages[i]);
    }
}

// Of `count` pages of a sequence, at most kBoundPages, the largest bounds of the query heads of a row, which are the rows
// of `tile`.
inline void bound_scores(const AttendCall& call, const Tile& tile, int64_t first_page, int64_t count, float* bounds,
                         uint8_t* memory) {
    Cursor cursor{memory, 0};
    const Scratch scratch = lay_out(call, cursor);
    const Pages& pages = call.pages;
    const int64_t width = pages.key.width, stride = summary_stride(pages);
    const int32_t* page_indices = table_of(call.tables, tile.sequence, 0) + first_page;
    const Bf16* summaries[kBoundPages];
    for (int64_t i = 0; i < count; i++)
        summaries[i] = pages.summaries.numbers + (page_indices[i] * pages.num_kv_heads + tile.kv_head) * stride;
    float* queries = static_cast<float*>(scratch.query);
    fill(bounds, {0, int(count)}, kNegativeInfinity);
    for (int64_t first = 0; first < tile.num_rows; first += kBandRows) {
        const int64_t rows = tile.num_rows - first < kBandRows ? tile.num_rows - first : kBandRows;
        Tile band = tile;
        band.first_row = tile.first_row + first;
        band.num_rows = rows;
        const Work work{call, band, scratch};
        Lifts lifts(work);
        lifts.pack_queries();
        for (int64_t row = 0; row < rows; row++) {
            read_query(work, row, scratch.row);
            order_query(scratch.row, width, stride, queries + row * stride);
        }
        if (!lifts.is_empty()) {
            bound_lifted(lifts, queries, rows, stride, first_page, summaries, count, bounds);
            continue;
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t row = 0; row < rows; row += kBoundRows)
                keep_larger(bounds[i], largest_of_rows(queries + row * stride, rows - row, summaries[i], stride));
    }
}

}  // namespace
}  // namespace pagoda
