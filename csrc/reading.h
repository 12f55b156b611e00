// Which pages some rows read: those whose tokens can have the highest scores (Quest, arXiv 2406.10774).
//
// Knows page tables and bounds, not how these are found. What is not read stays where it is: the next row may read it.
#pragma once

#include <vector>

#include "attention.h"

namespace pagoda {

// Page tables of a call in which each row that reads some pages only is a sequence of its own. Owns what they point to.
class ChosenTables {
  public:
    // Throws std::invalid_argument where pages cannot be chosen. Summaries are made of pages that have none.
    ChosenTables(const AttendCall& call, const KernelTable& kernels, int num_threads);

    bool is_empty() const { return rows_.empty(); }
    Tables tables() const;

  private:
    // Row `token` of a sequence, which sees `num_pages` and reads `most_pages` of them.
    struct Row {
        int64_t sequence;
        int64_t token;
        int64_t num_pages;
        int64_t most_pages;
        int64_t first_bound;
        int64_t first_chosen;
    };

    void find_rows();
    void summarise(const KernelTable& kernels, int num_threads);
    void choose(const KernelTable& kernels, int num_threads);
    void lay_out();
    void add_sequence(int64_t sequence, int64_t num_rows, int64_t length, int64_t num_head_pages);
    const int32_t* own_table(const Row& row) const;

    const AttendCall& call_;
    std::vector<Row> rows_;
    std::vector<float> bounds_;
    std::vector<int32_t> chosen_;  // numbers of pages
    std::vector<int32_t> page_indices_, page_numbers_, page_starts_, query_starts_, context_lengths_, cell_starts_, head_pages_;
};

}  // namespace pagoda
