// Attention of one tile of query rows over its context: block by block, all rows of a KV group against each key read.
//
// Knows the order of work; the products are the arithmetic's, the addresses the block's, the statistics the softmax's.
#pragma once

#include "accumulator.h"
#include "arithmetic.h"
#include "encoding.h"

namespace pagoda {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline void pack_row(float* target, const uint8_t* source, Number number, int64_t width) {
    read_row(target, source, number, width);
}

// Arithmetic with bf16 factors is chosen for bf16 queries only.
inline void pack_row(Bf16* target, const uint8_t* source, Number, int64_t width) {
    __builtin_memcpy(target, source, size_t(width) * sizeof(Bf16));
}

inline float float_of(float value) { return value; }
inline float float_of(Bf16 value) { return float_of_bf16(value); }

template <class Arithmetic>
class TileAttention {
  public:
    typedef typename Arithmetic::Factor Factor;

    TileAttention(const AttendCall& call, const Tile& tile, const Scratch& scratch)
        : call_(call), tile_(tile), scratch_(scratch), arithmetic_(call.pages) {}

    void run() {
        pack_queries();
        if (has_codes(call_.pages.value)) clear_levels(scratch_.value_levels);
        if (!tile_.partial) clear(scratch_.total, tile_.num_rows);
        for (int64_t token = tile_.first_token / kSplitTokens * kSplitTokens; token < tile_.last_token;
             token += kSplitTokens)
            attend_split(token);
        if (!tile_.partial) write_out(call_, tile_, scratch_.total, scratch_.row);
    }

  private:
    void pack_queries() {
        Factor* target = static_cast<Factor*>(scratch_.query);
        for (int64_t row = 0; row < tile_.num_rows; row++, target += query_stride(call_))
            pack_row(target, row_data(call_, call_.query, place_of(call_, tile_, row)), call_.query.number,
                     call_.pages.key.width);
        if (has_minima(call_.pages.key.encoding)) sum_queries();
    }

    // As they were packed, since minima of keys weigh the sum of what the products see.
    void sum_queries() {
        const Factor* query = static_cast<const Factor*>(scratch_.query);
        for (int64_t row = 0; row < tile_.num_rows; row++, query += query_stride(call_)) {
            float sum = 0.0f;
            for (int64_t channel = 0; channel < call_.pages.key.width; channel++) sum += float_of(query[channel]);
            scratch_.query_sums[row] = sum;
        }
    }

    static void clear_levels(const TokenLevels& levels) {
        for (int64_t token = 0; token < kBlockTokens; token++) levels.scales[token] = levels.minima[token] = 0.0f;
    }

    void attend_split(int64_t first_token) {
        const Accumulator& split = scratch_.split;
        const int64_t begin = larger(first_token, tile_.first_token);
        const int64_t end = smaller(first_token + kSplitTokens, tile_.last_token);
        clear(split, tile_.num_rows);
        int64_t token = begin / kBlockTokens * kBlockTokens;
        Block block = find_block(call_, tile_, token, begin, end, scratch_.room);
        prefetch_keys(block);
        while (token < end) {
            token += kBlockTokens;
            const Block next = token < end ? find_block(call_, tile_, token, begin, end, scratch_.room) : Block{};
            attend_block(block, next);
            block = next;
        }
        if (tile_.partial) return save_partial(call_, split, tile_.num_rows, tile_.partial);
        for (int64_t row = 0; row < tile_.num_rows; row++)
            fold_row(scratch_.total, row, split.maximum[row], split.sum[row], split.values + row * split.stride);
    }

    void attend_block(const Block& block, const Block& next) {
        decode_key_panels(block, next);
        values_are_codes_ = has_codes(call_.pages.value);
        for (int64_t row = 0; row < tile_.num_rows; row += kBandRows)
            attend_band(block, next, row, smaller(kBandRows, tile_.num_rows - row));
    }

    // What row `row` reaches of a block.
    Range reach(const Block& block, int64_t row) const {
        const RowPlace place = place_of(call_, tile_, row);
        const int64_t position = call_.tables.context_lengths[place.sequence] -
                                 new_tokens(call_.tables, place.sequence) + place.token;
        const int64_t first = first_in_reach(call_.rule, position) - block.first_token;
        const int64_t last = position + 1 - block.first_token;
        return {int(smaller(larger(first, 0), kBlockTokens)), int(smaller(larger(last, 0), kBlockTokens))};
    }

    void attend_band(const Block& block, const Block& next, int64_t first_row, int64_t rows) {
        const int64_t tokens = panel_tokens(call_.pages);
        const int first = reach(block, first_row).first, last = reach(block, first_row + rows - 1).last;
        const int first_panel = int(larger(block.first_panel, first / tokens));
        const int last_panel = int(smaller(block.last_panel, (last + tokens - 1) / tokens));
        if (first_panel >= last_panel) return;
        make_scores(block, first_panel, last_panel, first_row, rows);
        const Range range{int(first_panel * tokens / kRangeTokens * kRangeTokens),
                          int(rounded_up(last_panel * tokens, kRangeTokens))};
        if (values_are_codes_) decode_value_panels(block, next);
        for (int64_t row = 0; row < rows; row++) weigh_row(block, range, first_row, row);
        add_values(block, next, first_panel, last_panel, first_row, rows);
    }

    void weigh_row(const Block& block, Range range, int64_t first_row, int64_t row) {
        const float* scores = scratch_.scores + row * kScoreStride;
        Factor* weights = static_cast<Factor*>(scratch_.weights) + row * kWeightStride;
        const Plane& plane = call_.pages.value;
        scratch_.shifts[row] = 0.0f;
        const auto weigh_numbers = [&](float scale, float maximum) {
            return weigh(scores, weights, range, scale, maximum);
        };
        const auto weigh_plane = [&](float scale, float maximum) {
            const float offset = has_minima(plane.encoding) ? kNibbleOffset : 0.0f;
            return weigh_codes(scores, weights, range, scale, maximum, scratch_.value_levels, offset,
                               scratch_.shifts + row);
        };
        const Range reached = reach(block, first_row + row);
        float* target = scratch_.scores + row * kScoreStride;
        if (has_codes(plane))
            softmax(target, weights, reached, range, call_.rule, scratch_.split, first_row + row, weigh_plane);
        else
            softmax(target, weights, reached, range, call_.rule, scratch_.split, first_row + row, weigh_numbers);
    }

    // What is read after the codes of the given panel: the next one's, then the other plane's.
    static const uint8_t* codes_after(const Block& block, int panel, const Codes* codes, const Block& other_block,
                                      const Codes* other) {
        if (panel + 1 < block.last_panel) return codes[panel + 1].codes;
        const bool has_other = other_block.first_panel < other_block.last_panel;
        return has_other ? other[other_block.first_panel].codes : codes[panel].codes;
    }

    void decode_key_panels(const Block& block, const Block& next) {
        const Pages& pages = call_.pages;
        if (!has_codes(pages.key)) return;
        const int64_t tokens = panel_tokens(pages), rows = pages.key.width / 2;
        const bool values_follow = has_codes(pages.value);
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            const uint8_t* ahead = codes_after(block, panel, block.key_codes, values_follow ? block : next,
                                               values_follow ? block.value_codes : next.key_codes);
            const Codes& codes = block.key_codes[panel];
            const int64_t row_nbytes = code_nbytes(pages.key.encoding, pages.page_tokens * 2);
            decode_keys(pages.key.encoding, {codes.codes, row_nbytes, ahead}, rows, tokens,
                        const_cast<uint8_t*>(block.key[panel]));
            read_levels(codes, panel * tokens, tokens, scratch_.key_levels);
        }
    }

    static void read_levels(const Codes& codes, int64_t first, int64_t tokens, const TokenLevels& levels) {
        read_row(levels.scales + first, codes.scales, Number::bf16, tokens);
        if (codes.minima) read_row(levels.minima + first, codes.minima, Number::bf16, tokens);
    }

    void decode_value_panels(const Block& block, const Block& next) {
        values_are_codes_ = false;
        const Pages& pages = call_.pages;
        const int64_t tokens = panel_tokens(pages), width = pages.value.width;
        const int64_t row_nbytes = 2 * code_nbytes(pages.value.encoding, width);
        const Codes* next_codes = has_codes(pages.key) ? next.key_codes : next.value_codes;
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            const uint8_t* ahead = codes_after(block, panel, block.value_codes, next, next_codes);
            const Codes& codes = block.value_codes[panel];
            decode_values(pages.value.encoding, {codes.codes, row_nbytes, ahead}, tokens / 2, width,
                          const_cast<uint8_t*>(block.value[panel]));
            const TokenLevels& levels = scratch_.value_levels;
            read_levels(codes, panel * tokens, tokens, levels);
            const int64_t first_token = block.first_token + panel * tokens;
            for (int64_t token = 0; token < tokens; token++)
                if (first_token + token < block.begin || first_token + token >= block.end)
                    levels.scales[panel * tokens + token] = levels.minima[panel * tokens + token] = 0.0f;
        }
    }

    // Each product asks ahead for what the one after it reads: scores for the block's values, values for the next
    // block's keys. The first band does it for all.
    void make_scores(const Block& block, int first_panel, int last_panel, int64_t first_row, int64_t rows) {
        const int64_t tokens = panel_tokens(call_.pages);
        const Left<Factor> queries{static_cast<const Factor*>(scratch_.query) + first_row * query_stride(call_),
                                   query_stride(call_), int(rows)};
        for (int panel = first_panel; panel < last_panel; panel++) {
            const bool asks_ahead = first_row == 0 && !has_codes(call_.pages.value);
            const uint8_t* const* ahead = asks_ahead ? block.value : block.key;
            const Panels keys{block.key + panel, ahead + panel, 1, call_.pages.key.width / word_numbers(call_.pages),
                              key_row_nbytes(call_.pages), tokens};
            arithmetic_.scores(queries, keys, {scratch_.scores + panel * tokens, kScoreStride, false});
        }
        if (has_codes(call_.pages.key)) scale_scores(first_panel * tokens, last_panel * tokens, first_row, rows);
    }

    void scale_scores(int64_t first, int64_t last, int64_t first_row, int64_t rows) {
        const TokenLevels& levels = scratch_.key_levels;
        for (int64_t row = 0; row < rows; row++) {
            float* scores = scratch_.scores + row * kScoreStride;
            if (!has_minima(call_.pages.key.encoding)) {
                for (int64_t token = first; token < last; token += kLanes)
                    store(scores + token, load(scores + token) * load(levels.scales + token));
                continue;
            }
            const Floats sum = splat(scratch_.query_sums[first_row + row]);
            for (int64_t token = first; token < last; token += kLanes) {
                const Floats codes = load(scores + token) - sum * kNibbleOffset;
                store(scores + token, codes * load(levels.scales + token) + sum * load(levels.minima + token));
            }
        }
    }

    void add_values(const Block& block, const Block& next, int first_panel, int last_panel, int64_t first_row,
                    int64_t rows) {
        const int64_t tokens = panel_tokens(call_.pages);
        const Left<Factor> weights{static_cast<const Factor*>(scratch_.weights) + first_panel * tokens, kWeightStride,
                                   int(rows)};
        const uint8_t* ahead[kMaxPanels];
        for (int panel = first_panel; panel < last_panel; panel++) {
            const bool is_next = first_row == 0 && !has_codes(call_.pages.key) && panel >= next.first_panel && panel < next.last_panel;
            ahead[panel] = is_next ? next.key_run[panel] : block.value[panel];
        }
        const Panels values{block.value + first_panel, ahead + first_panel, last_panel - first_panel,
                            tokens / word_numbers(call_.pages), value_row_nbytes(call_.pages), call_.pages.value.width};
        const Accumulator& split = scratch_.split;
        arithmetic_.values(weights, values, {split.values + first_row * split.stride, split.stride, true});
        if (!has_minima(call_.pages.value.encoding)) return;
        for (int64_t row = 0; row < rows; row++) {
            float* sums = split.values + (first_row + row) * split.stride;
            for (int64_t channel = 0; channel < split.stride; channel += kLanes)
                store(sums + channel, load(sums + channel) + scratch_.shifts[row]);
        }
    }

    // The first keys of a split are asked for at once: there is nothing to do before they come.
    void prefetch_keys(const Block& block) const {
        if (has_codes(call_.pages.key)) return;
        const int64_t nbytes = panel_tokens(call_.pages) * call_.pages.key.width * number_nbytes(call_.pages.number);
        for (int panel = block.first_panel; panel < block.last_panel; panel++)
            for (int64_t offset = 0; offset < nbytes; offset += kLineNbytes) prefetch(block.key_run[panel] + offset);
    }

    const AttendCall& call_;
    const Tile& tile_;
    const Scratch& scratch_;
    Arithmetic arithmetic_;
    bool values_are_codes_ = false;  // those of the block at hand
};

}  // namespace
}  // namespace pagoda
