// Where the tokens of a KV head lie in a sequence whose first pages are packed: in cells of its own, then in its share
// of the pages behind. See `GroupView` in kernels/base.py.
//
// Knows page tables, no numbers. Where nothing is packed a head has as many tokens as the sequence.
#pragma once

#include "attention.h"

namespace pagoda {

// Cells [first, first + count) of the packed pages, of which there are `num_pages`.
struct HeadCells {
    int64_t first;
    int64_t count;
    int64_t num_pages;
};

static inline int64_t packed_pages(const Tables& tables, int64_t sequence) {
    if (!tables.cell_starts) return 0;
    const int64_t num_cells = tables.cell_starts[(sequence + 1) * (tables.page_cells + 1) - 1];
    return (num_cells + tables.page_cells - 1) / tables.page_cells;
}

static inline HeadCells head_cells(const Tables& tables, const Pages& pages, int64_t sequence, int64_t head) {
    if (!tables.cell_starts) return {0, 0, 0};
    const int32_t* starts = tables.cell_starts + sequence * (tables.page_cells + 1) + pages.layer * pages.num_kv_heads;
    return {starts[head], starts[head + 1] - starts[head], packed_pages(tables, sequence)};
}

static inline int64_t head_length(const Tables& tables, const Pages& pages, int64_t sequence, int64_t head) {
    const HeadCells cells = head_cells(tables, pages, sequence, head);
    return tables.context_lengths[sequence] + (cells.count - cells.num_pages) * pages.page_tokens;
}

// What has tokens [index, index + 1) x page_tokens of a head, in a sequence with these pages.
static inline Cell cell_at(const int32_t* table, const Pages& pages, const HeadCells& cells, int64_t page_cells,
                           int64_t head, int64_t index) {
    if (index >= cells.count) return own_cell(pages, table[index - cells.count + cells.num_pages], head);
    const int64_t number = cells.first + index, place = number % page_cells;
    const Cell cell = own_cell(pages, table[number / page_cells], place % pages.num_kv_heads);
    return {cell.data + (place / pages.num_kv_heads - pages.layer) * pages.layer_nbytes, cell.head};
}

}  // namespace pagoda
