// Attention of one tile of query rows over its context: block by block, all rows of a KV group against each key read.
//
// Knows the order of work; scores are the keys', weighted sums the values', addresses the block's.
#pragma once

#include "accumulator.h"
#include "values.h"

namespace pagoda {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Arithmetic, template <class> class Keys, template <class> class Values>
class TileAttention {
  public:
    TileAttention(const AttendCall& call, const Tile& tile, const Scratch& scratch)
        : call_(call),
          tile_(tile),
          scratch_(scratch),
          work_{call, tile, scratch},
          arithmetic_(call.pages),
          keys_(work_, arithmetic_),
          values_(work_, arithmetic_) {}

    void run() {
        keys_.pack_queries();
        if (tile_.partial) return attend_split((tile_.last_token - 1) / kSplitTokens * kSplitTokens);
        clear(scratch_.total, tile_.num_rows);
        const int64_t first = tile_.first_token / kSplitTokens * kSplitTokens;
        for (int64_t token = 0; token < smaller(tile_.sink_end, first); token += kSplitTokens) attend_split(token);
        for (int64_t token = first; token < tile_.last_token; token += kSplitTokens) attend_split(token);
        write_out(call_, tile_, scratch_.total, scratch_.row);
    }

  private:
    static constexpr int64_t kRows =
        Keys<Arithmetic>::kBandRows < Values<Arithmetic>::kBandRows ? Keys<Arithmetic>::kBandRows
                                                                    : Values<Arithmetic>::kBandRows;

    void attend_split(int64_t first_token) {
        const Accumulator& split = scratch_.split;
        const bool has_sinks = tile_.sink_end > first_token, has_more = tile_.first_token < first_token + kSplitTokens;
        const int64_t begin = has_sinks ? first_token : larger(first_token, tile_.first_token);
        const int64_t end = smaller(first_token + kSplitTokens, has_more ? tile_.last_token : tile_.sink_end);
        clear(split, tile_.num_rows);
        int64_t token = begin / kBlockTokens * kBlockTokens;
        Block block = find_block(call_, tile_, token, begin, end, scratch_.edges);
        prefetch_keys(block);
        while (token < end) {
            token = following(token);
            const Block next = token < end ? find_block(call_, tile_, token, begin, end, scratch_.edges) : Block{};
            attend_block(block, next);
            block = next;
        }
        if (tile_.partial) return save_partial(call_, split, tile_.num_rows, tile_.partial);
        for (int64_t row = 0; row < tile_.num_rows; row++)
            fold_row(scratch_.total, row, split.maximum[row], split.sum[row], split.values + row * split.stride);
    }

    // The block after the one at `token`; between sinks and what is near, none.
    int64_t following(int64_t token) const {
        token += kBlockTokens;
        const int64_t near = tile_.first_token / kBlockTokens * kBlockTokens;
        return tile_.sink_end > 0 && token >= tile_.sink_end && token < near ? near : token;
    }

    // Whatever reads keys asks ahead for the block's values, whatever reads values for the next block's keys.
    void attend_block(const Block& block, const Block& next) {
        Ahead after_keys{}, after_values{};
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            after_keys.runs[panel] = block.value[panel];
            if (panel >= next.first_panel && panel < next.last_panel) after_values.runs[panel] = next.key_run[panel];
        }
        keys_.read(block, after_keys);
        bool has_values = false;
        for (int64_t row = 0; row < tile_.num_rows; row += kRows) {
            const Band band{row, smaller(kRows, tile_.num_rows - row)};
            const PanelRange panels = panels_of(block, band);
            if (panels.first >= panels.last) continue;
            keys_.score(block, panels, band, after_keys);
            if (!has_values) values_.read(block, after_values);
            has_values = true;
            weigh(block, panels, band);
            values_.add(panels, band, after_values);
        }
    }

    // What row `row` sees of a block; of one that is placed, all that is stored and all that is new.
    Sight sight(const Block& block, int64_t row) const {
        const RowPlace place = place_of(call_, tile_, row);
        const int64_t length = head_length(call_.tables, call_.pages, place.sequence, tile_.kv_head);
        const int64_t past = length - new_tokens(call_.tables, place.sequence), sinks = call_.rule.sink_tokens;
        if (is_placed(call_, place.sequence)) {
            const int64_t first = first_in_reach(call_.rule, position_of(call_, place.sequence, place.token));
            return {within(block, smaller(first, past), length), clamped(smaller(sinks, past) - block.first_token)};
        }
        const int64_t position = past + place.token;
        return {within(block, first_in_reach(call_.rule, position), end_of_reach(call_.rule, position, length)),
                sinks > 0 ? clamped(smaller(sinks, position + 1) - block.first_token) : 0};
    }

    static int clamped(int64_t token) { return int(smaller(larger(token, 0), kBlockTokens)); }

    static Range within(const Block& block, int64_t first, int64_t last) {
        return {clamped(first - block.first_token), clamped(last - block.first_token)};
    }

    Slant slant(const Block& block, int64_t row, PlacedRow& placed) const {
        const Rule& rule = call_.rule;
        if (!rule.slopes && !rule.biases.rows && !call_.placed) return {};
        const RowPlace place = place_of(call_, tile_, row);
        Slant slant{};
        if (is_placed(call_, place.sequence)) {
            placed = {&call_, place.sequence, place.token, block.first_token};
            slant.placed = &placed;
        }
        const int64_t offset = block.first_token - position_of(call_, place.sequence, place.token);
        if (rule.slopes) {
            slant.slope = rule.slopes[place.head];
            slant.offset = float(offset);
        } else if (rule.biases.rows) {
            slant.num_biases = rule.biases.num_distances;
            slant.first_bias = offset + slant.num_biases - 1;
            slant.biases = rule.biases.rows + place.head * (slant.num_biases + 2 * Biases::kEdge) + Biases::kEdge;
        }
        return slant;
    }

    PanelRange panels_of(const Block& block, const Band& band) const {
        const int64_t tokens = panel_tokens(call_.pages);
        if (is_placed(call_, tile_.sequence)) return {block.first_panel, block.last_panel};
        const Sight begin = sight(block, band.first), end = sight(block, band.first + band.count - 1);
        const int first = end.sink_end > 0 ? 0 : begin.tokens.first, last = larger(end.tokens.last, end.sink_end);
        return {int(larger(block.first_panel, first / tokens)),
                int(smaller(block.last_panel, (last + tokens - 1) / tokens))};
    }

    void weigh(const Block& block, PanelRange panels, const Band& band) {
        const int64_t tokens = panel_tokens(call_.pages);
        const Range range{int(panels.first * tokens / kRangeTokens * kRangeTokens),
                          int(rounded_up(panels.last * tokens, kRangeTokens))};
        PlacedRow placed;
        for (int64_t row = 0; row < band.count; row++)
            values_.weigh(sight(block, band.first + row), range, slant(block, band.first + row, placed), band.first,
                          row);
    }

    // The first keys of a split are asked for at once: there is nothing to do before they come.
    void prefetch_keys(const Block& block) const {
        const Plane& plane = call_.pages.key;
        const int64_t nbytes = head_nbytes(call_.pages, plane) / call_.pages.page_tokens * panel_tokens(call_.pages);
        for (int panel = block.first_panel; panel < block.last_panel; panel++)
            for (int64_t offset = 0; offset < nbytes; offset += kLineNbytes) prefetch(block.key_run[panel] + offset);
    }

    const AttendCall& call_;
    const Tile& tile_;
    const Scratch& scratch_;
    const Work work_;
    Arithmetic arithmetic_;
    Keys<Arithmetic> keys_;
    Values<Arithmetic> values_;
};

}  // namespace
}  // namespace pagoda
