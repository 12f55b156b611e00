// Where the keys and values of one block of tokens lie: a panel of 16 or 32 tokens at a time, since pages are
// scattered.
//
// Knows page tables and the word order of planes; does no arithmetic. A panel with tokens that no row of the tile may
// see (free memory, filled with NaN, behind the end of a sequence) is replaced by a copy with zeros there: 0 x NaN is
// NaN.
#pragma once

#include "attention.h"

namespace pagoda {
namespace {

constexpr int64_t kMinimumPanelTokens = 16;
constexpr int kMaxPanels = kBlockTokens / kMinimumPanelTokens;

// Panels [first_panel, last_panel) of the block that begins at token `first_token`; entries outside are unset. Keys of
// one panel are strided if a page holds several; `key_run` is the panel's share of its page's keys as a run of bytes,
// which is what to prefetch: together the panels of a page cover it.
struct Block {
    int64_t first_token;
    int first_panel;
    int last_panel;
    const uint8_t* key[kMaxPanels];
    const uint8_t* value[kMaxPanels];
    const uint8_t* key_run[kMaxPanels];
};

inline int64_t panel_tokens(const Pages& pages) { return pages.page_tokens % 32 == 0 ? 32 : 16; }
inline int64_t word_numbers(const Pages& pages) { return 4 / number_nbytes(pages.number); }
inline int64_t value_row_nbytes(const Pages& pages) { return pages.value.width * 4; }
inline int64_t key_row_nbytes(const Pages& pages) { return pages.page_tokens * 4; }

inline int64_t value_panel_nbytes(const Pages& pages) {
    return panel_tokens(pages) / word_numbers(pages) * value_row_nbytes(pages);
}

inline const uint8_t* head_plane(const Pages& pages, const Plane& plane, int64_t page, int64_t head) {
    const int64_t head_nbytes = plane.width * pages.page_tokens * number_nbytes(pages.number);
    return pages.data + page * pages.page_nbytes + plane.offset_nbytes + head * head_nbytes;
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

// The part of the block at `first_token` that lies in tokens [begin, end). `edges` has room for two value panels, the
// one with `begin` and the one with `end`, whichever blocks they fall into.
inline Block find_block(const AttendCall& call, const Tile& tile, int64_t first_token, int64_t begin, int64_t end,
                        uint8_t* edges) {
    const Pages& pages = call.pages;
    const int64_t tokens = panel_tokens(pages);
    const int32_t* table = call.tables.page_indices + call.tables.page_starts[tile.sequence];
    Block block;
    block.first_token = first_token;
    block.first_panel = begin > first_token ? int((begin - first_token) / tokens) : 0;
    block.last_panel = end < first_token + kBlockTokens ? int((end - first_token + tokens - 1) / tokens)
                                                        : int(kBlockTokens / tokens);
    for (int panel = block.first_panel; panel < block.last_panel; panel++) {
        const int64_t token = first_token + panel * tokens;
        const int64_t page = table[token / pages.page_tokens], offset = token % pages.page_tokens;
        const uint8_t* keys = head_plane(pages, pages.key, page, tile.kv_head);
        block.key[panel] = keys + offset * 4;
        block.key_run[panel] = keys + offset * pages.key.width * number_nbytes(pages.number);
        block.value[panel] = head_plane(pages, pages.value, page, tile.kv_head) +
                             offset / word_numbers(pages) * value_row_nbytes(pages);
        if (token >= begin && token + tokens <= end) continue;
        uint8_t* copy = token < begin ? edges : edges + value_panel_nbytes(pages);
        copy_value_panel(pages, block.value[panel], token, begin, end, copy);
        block.value[panel] = copy;
    }
    return block;
}

}  // namespace
}  // namespace pagoda
