// Where the keys and values of one block of tokens lie: a panel of 16 or 32 tokens at a time, since pages are
// scattered.
//
// Knows page tables and the word order of planes; does no arithmetic. A value panel with tokens that no row of the tile
// may see (free memory, filled with NaN, behind the end of a sequence) is replaced by a copy with zeros there: 0 x NaN
// is NaN. Planes of codes are decoded to scratch memory, with zeros there too.
#pragma once

#include "attention.h"

namespace pagoda {
namespace {

constexpr int64_t kMinimumPanelTokens = 16;
constexpr int kMaxPanels = kBlockTokens / kMinimumPanelTokens;

// The codes of one panel, and the scales and minima of its tokens.
struct Codes {
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* minima;
};

// Panels [first_panel, last_panel) of the block that begins at token `first_token`; entries outside are unset. Tokens
// [begin, end) of the sequence count. Keys of one panel are strided if a page holds several; `key_run` is the panel's
// share of its page's keys as a run of bytes, which is what to prefetch: together the panels of a page cover it. Where a
// plane has codes, `key` and `value` are where they will be decoded to.
struct Block {
    int64_t first_token;
    int64_t begin;
    int64_t end;
    int first_panel;
    int last_panel;
    const uint8_t* key[kMaxPanels];
    const uint8_t* value[kMaxPanels];
    const uint8_t* key_run[kMaxPanels];
    Codes key_codes[kMaxPanels];
    Codes value_codes[kMaxPanels];
};

// Room for what does not lie in pages as products want it: two value panels, the one with `begin` and the one with
// `end` of a split, whichever blocks they fall into; and the decoded planes of one block.
struct Room {
    uint8_t* edges;
    uint8_t* keys;
    uint8_t* values;
};

inline int64_t panel_tokens(const Pages& pages) { return pages.page_tokens % 32 == 0 ? 32 : 16; }
inline int64_t word_numbers(const Pages& pages) { return 4 / number_nbytes(pages.number); }
inline int64_t value_row_nbytes(const Pages& pages) { return pages.value.width * 4; }
inline bool has_codes(const Plane& plane) { return plane.encoding != Encoding::none; }

inline int64_t key_row_nbytes(const Pages& pages) {
    return (has_codes(pages.key) ? panel_tokens(pages) : pages.page_tokens) * 4;
}

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

inline Codes codes_at(const Pages& pages, const Plane& plane, const uint8_t* data, int64_t first_nbytes,
                      int64_t offset) {
    const uint8_t* scales = data + pages.page_tokens * code_nbytes(plane.encoding, plane.width);
    const uint8_t* minima = has_minima(plane.encoding) ? scales + pages.page_tokens * kScaleNbytes : nullptr;
    return {data + first_nbytes, scales + offset * kScaleNbytes, minima ? minima + offset * kScaleNbytes : nullptr};
}

inline void find_keys(const Pages& pages, int64_t page, int64_t head, int64_t offset, int panel, Block& block,
                      const Room& room) {
    const uint8_t* plane = head_plane(pages, pages.key, page, head);
    const int64_t width = pages.key.width;
    if (!has_codes(pages.key)) {
        block.key[panel] = plane + offset * 4;
        block.key_run[panel] = plane + offset * width * number_nbytes(pages.number);
        return;
    }
    block.key[panel] = room.keys + panel * panel_tokens(pages) * width * number_nbytes(pages.number);
    const int64_t column_nbytes = pages.key.encoding == Encoding::int4 ? 1 : 2;
    block.key_codes[panel] = codes_at(pages, pages.key, plane, offset * column_nbytes, offset);
}

inline void find_values(const Pages& pages, int64_t page, int64_t head, int64_t offset, int panel, Block& block,
                        const Room& room) {
    const uint8_t* plane = head_plane(pages, pages.value, page, head);
    const int64_t width = pages.value.width, token = block.first_token + panel * panel_tokens(pages);
    if (has_codes(pages.value)) {
        block.value[panel] = room.values + panel * value_panel_nbytes(pages);
        const int64_t first = offset * code_nbytes(pages.value.encoding, width);
        block.value_codes[panel] = codes_at(pages, pages.value, plane, first, offset);
        return;
    }
    block.value[panel] = plane + offset / word_numbers(pages) * value_row_nbytes(pages);
    if (token >= block.begin && token + panel_tokens(pages) <= block.end) return;
    uint8_t* copy = token < block.begin ? room.edges : room.edges + value_panel_nbytes(pages);
    copy_value_panel(pages, block.value[panel], token, block.begin, block.end, copy);
    block.value[panel] = copy;
}

// The part of the block at `first_token` that lies in tokens [begin, end).
inline Block find_block(const AttendCall& call, const Tile& tile, int64_t first_token, int64_t begin, int64_t end,
                        const Room& room) {
    const Pages& pages = call.pages;
    const int64_t tokens = panel_tokens(pages);
    const int32_t* table = call.tables.page_indices + call.tables.page_starts[tile.sequence];
    Block block;
    block.first_token = first_token;
    block.begin = begin;
    block.end = end;
    block.first_panel = begin > first_token ? int((begin - first_token) / tokens) : 0;
    block.last_panel = end < first_token + kBlockTokens ? int((end - first_token + tokens - 1) / tokens)
                                                        : int(kBlockTokens / tokens);
    for (int panel = block.first_panel; panel < block.last_panel; panel++) {
        const int64_t token = first_token + panel * tokens;
        const int64_t page = table[token / pages.page_tokens], offset = token % pages.page_tokens;
        find_keys(pages, page, tile.kv_head, offset, panel, block, room);
        find_values(pages, page, tile.kv_head, offset, panel, block, room);
    }
    return block;
}

}  // namespace
}  // namespace pagoda
