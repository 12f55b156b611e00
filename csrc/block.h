// Where the keys and values of one block of tokens lie: a panel of 16 or 32 tokens at a time, since pages are
// scattered.
//
// Knows page tables and the word order of planes; does no arithmetic. A value panel with tokens that no row of the tile
// may see (free memory, filled with NaN, behind the end of a sequence) is replaced by a copy with zeros there: 0 x NaN
// is NaN. Codes are finite whatever they are, and get scales of zero later.
#pragma once

#include "cells.h"

namespace pagoda {
namespace {

constexpr int64_t kMinimumPanelTokens = 16;
constexpr int kMaxPanels = kBlockTokens / kMinimumPanelTokens;

// The scales of a panel's tokens, and the steps and zeros of their groups, a page's tokens from one group to the next.
struct PanelLevels {
    const uint8_t* scales;
    const uint8_t* groups;
};

// Panels [first_panel, last_panel) of the block that begins at token `first_token`; entries outside are unset. Tokens
// [begin, end) of the sequence count. Keys of one panel are strided if a page holds several; `key_run` is the panel's
// share of its page's keys as a run of bytes, which is what to prefetch: together the panels of a page cover it.
struct Block {
    int64_t first_token;
    int64_t begin;
    int64_t end;
    int first_panel;
    int last_panel;
    const uint8_t* key[kMaxPanels];
    const uint8_t* value[kMaxPanels];
    const uint8_t* key_run[kMaxPanels];
    PanelLevels key_levels[kMaxPanels];
    PanelLevels value_levels[kMaxPanels];
};

inline int64_t panel_tokens(const Pages& pages) { return pages.page_tokens % 32 == 0 ? 32 : 16; }

// Numbers are in words as wide as their type allows, codes in words of four bytes, of which int4 needs half as many.
inline int64_t word_numbers(const Pages& pages) { return 4 / number_nbytes(pages.number); }
inline int64_t value_row_nbytes(const Pages& pages) { return pages.value.width * 4; }
inline int64_t key_row_nbytes(const Pages& pages) { return pages.page_tokens * 4; }

inline int64_t value_panel_nbytes(const Pages& pages) {
    return panel_tokens(pages) / word_numbers(pages) * value_row_nbytes(pages);
}

// Copies a value panel that begins at `first_token`, with zeros for tokens outside of [begin, end).
inline void copy_value_panel(const Pages& pages, const uint8_t* source, int64_t first_token, int64_t begin, int64_t end,
                             uint8_t* target) {
    typedef uint32_t Word __attribute__((may_alias));
    const int64_t numbers = word_numbers(pages), width = pages.value.width;
    const uint32_t number_mask = numbers == 1 ? 0xffffffffu : 0xffffu;
    for (int64_t token = first_token; token < first_token + panel_tokens(pages); token += numbers) {
        uint32_t mask = 0;
        for (int64_t i = 0; i < numbers; i++)
            if (token + i >= begin && token + i < end) mask |= number_mask << (16 * i);
        const Word* words = reinterpret_cast<const Word*>(source);
        Word* masked = reinterpret_cast<Word*>(target);
        for (int64_t channel = 0; channel < width; channel++) masked[channel] = words[channel] & mask;
        source += value_row_nbytes(pages);
        target += value_row_nbytes(pages);
    }
}

inline PanelLevels levels_at(const Pages& pages, const Plane& plane, const uint8_t* head, int64_t offset) {
    const uint8_t* scales = head + pages.page_tokens * code_nbytes(plane.encoding, plane.width);
    return {scales + offset * kScaleNbytes, scales + pages.page_tokens * kScaleNbytes + offset};
}

inline void find_keys(const Pages& pages, const Cell& cell, int64_t offset, int panel, Block& block) {
    const Plane& plane = pages.key;
    const uint8_t* keys = plane_of(pages, plane, cell);
    block.key[panel] = keys + offset * 4;
    if (!has_codes(plane)) {
        block.key_run[panel] = keys + offset * plane.width * number_nbytes(pages.number);
        return;
    }
    block.key_run[panel] = keys + offset * code_nbytes(plane.encoding, plane.width);
    block.key_levels[panel] = levels_at(pages, plane, keys, offset);
}

inline void find_values(const Pages& pages, const Cell& cell, int64_t offset, int panel, Block& block, uint8_t* edges) {
    if (pages.values_in_keys) {
        block.value[panel] = block.key[panel];
        if (has_codes(pages.key)) block.value_levels[panel] = block.key_levels[panel];
        return;
    }
    const Plane& plane = pages.value;
    const uint8_t* values = plane_of(pages, plane, cell);
    if (has_codes(plane)) {
        block.value[panel] = values + offset * code_nbytes(plane.encoding, plane.width);
        block.value_levels[panel] = levels_at(pages, plane, values, offset);
        return;
    }
    const int64_t token = block.first_token + panel * panel_tokens(pages);
    block.value[panel] = values + offset / word_numbers(pages) * value_row_nbytes(pages);
    if (token >= block.begin && token + panel_tokens(pages) <= block.end) return;
    uint8_t* copy = token < block.begin ? edges : edges + value_panel_nbytes(pages);
    copy_value_panel(pages, block.value[panel], token, block.begin, block.end, copy);
    block.value[panel] = copy;
}

// The part of the block at `first_token` that lies in tokens [begin, end). `edges` has room for two value panels: the
// one with `begin` and the one with `end` of a split, whichever blocks they fall into.
inline Block find_block(const AttendCall& call, const Tile& tile, int64_t first_token, int64_t begin, int64_t end,
                        uint8_t* edges) {
    const Pages& pages = call.pages;
    const int64_t tokens = panel_tokens(pages);
    const int32_t* table = table_of(call.tables, tile.sequence, tile.kv_head);
    const HeadCells cells = head_cells(call.tables, pages, tile.sequence, tile.kv_head);
    Block block;
    block.first_token = first_token;
    block.begin = begin;
    block.end = end;
    block.first_panel = begin > first_token ? int((begin - first_token) / tokens) : 0;
    block.last_panel = end < first_token + kBlockTokens ? int((end - first_token + tokens - 1) / tokens)
                                                        : int(kBlockTokens / tokens);
    for (int panel = block.first_panel; panel < block.last_panel; panel++) {
        const int64_t token = first_token + panel * tokens;
        const int64_t offset = token % pages.page_tokens;
        int64_t index = token / pages.page_tokens;
        // Between sinks and a window pages may be gone. The first one is there, and full; nobody sees its tokens here.
        if (call.rule.sink_tokens > 0 && table[index] < 0) index = 0;
        const Cell cell = cell_at(table, pages, cells, call.tables.page_cells, tile.kv_head, index);
        find_keys(pages, cell, offset, panel, block);
        find_values(pages, cell, offset, panel, block, edges);
    }
    return block;
}

}  // namespace
}  // namespace pagoda
