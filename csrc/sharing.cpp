// Sorts sequences by their page tables, so that those with a common prefix are neighbours; each split of the context
// then cuts them into runs on the same pages. Trees of prefixes need nothing more: a run only gets shorter with depth.
#include "sharing.h"

#include <algorithm>

#include "cells.h"

namespace pagoda {
namespace {

// A sequence with one new token, and the splits that lie wholly in its reach.
struct Reader {
    int32_t sequence;
    const int32_t* table;
    int64_t first_split;
    int64_t last_split;
};

std::vector<Reader> find_readers(const AttendCall& call) {
    std::vector<Reader> readers;
    for (int64_t sequence = 0; sequence < call.tables.num_sequences; sequence++) {
        if (new_tokens(call.tables, sequence) != 1 || packed_pages(call.tables, sequence) > 0) continue;
        if (call.tables.head_pages && call.tables.head_pages[sequence] > 0) continue;
        const int64_t length = call.tables.context_lengths[sequence];
        const int64_t first = first_in_reach(call.rule, length - 1);
        const int64_t first_split = (first + kSplitTokens - 1) / kSplitTokens, last_split = length / kSplitTokens;
        const int32_t* table = call.tables.page_indices + call.tables.page_starts[sequence];
        if (first_split < last_split) readers.push_back({int32_t(sequence), table, first_split, last_split});
    }
    return readers;
}

}  // namespace

std::vector<SharedSplit> find_shared_splits(const AttendCall& call, int64_t max_sequences) {
    std::vector<SharedSplit> shared;
    // Splits must begin and end with pages.
    if (max_sequences < 2 || kSplitTokens % call.pages.page_tokens != 0) return shared;
    const int64_t pages = kSplitTokens / call.pages.page_tokens;
    std::vector<Reader> readers = find_readers(call);
    if (readers.size() < 2) return shared;
    std::sort(readers.begin(), readers.end(), [pages](const Reader& a, const Reader& b) {
        return std::lexicographical_compare(a.table + a.first_split * pages, a.table + a.last_split * pages,
                                            b.table + b.first_split * pages, b.table + b.last_split * pages);
    });
    int64_t num_splits = 0;
    for (const Reader& reader : readers) num_splits = std::max(num_splits, reader.last_split);
    for (int64_t split = 0; split < num_splits; split++) {
        SharedSplit run{split, {}};
        const int32_t* run_pages = nullptr;
        const auto end_run = [&] {
            if (run.sequences.size() > 1) shared.push_back(run);
            run.sequences.clear();
        };
        for (const Reader& reader : readers) {
            if (split < reader.first_split || split >= reader.last_split) continue;
            const int32_t* own = reader.table + split * pages;
            const bool joins = !run.sequences.empty() && int64_t(run.sequences.size()) < max_sequences &&
                               std::equal(own, own + pages, run_pages);
            if (!joins) {
                end_run();
                run_pages = own;
            }
            run.sequences.push_back(reader.sequence);
        }
        end_run();
    }
    return shared;
}

}  // namespace pagoda
