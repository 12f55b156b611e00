// Finds the rows that read some pages only, has pages summarised and bounded, keeps the best, and writes tables of these.
#include "reading.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "lines.h"
#include "cells.h"
#include "places.h"
#include "plan.h"
#include "team.h"

namespace pagoda {
namespace {

// The first one, the last one, and one to choose.
constexpr int64_t kLeastPages = 3;

// A bound that is no number comes first: what it stands for shows in the result.
float ranked(float bound) { return bound == bound ? bound : std::numeric_limits<float>::infinity(); }

// The `count` pages with the highest bounds, in order, of those between the first and the last; of equal ones the earlier.
void keep_best(const float* bounds, int64_t num_pages, int64_t count, std::vector<int32_t>& kept) {
    kept.resize(size_t(num_pages - 2));
    std::iota(kept.begin(), kept.end(), 1);
    std::nth_element(kept.begin(), kept.begin() + (count - 1), kept.end(), [bounds](int32_t a, int32_t b) {
        const float first = ranked(bounds[a]), second = ranked(bounds[b]);
        return first != second ? first > second : a < b;
    });
    kept.resize(size_t(count));
    std::sort(kept.begin(), kept.end());
}

}  // namespace

ChosenTables::ChosenTables(const AttendCall& call, const KernelTable& kernels, int num_threads) : call_(call) {
    if (!call.tables.readings) return;
    find_rows();
    if (rows_.empty()) return;
    if (!call.pages.summaries.numbers) throw std::invalid_argument("pages are to be chosen that have no summaries");
    if (call.rule.reach != Reach::full || needs_positions(call.rule))
        throw std::invalid_argument("pages cannot be chosen where attention needs the positions of what is stored");
    if (call.tables.slots || call.tables.ancestors)
        throw std::invalid_argument("rows that choose their pages must follow one another");
    summarise(kernels, num_threads);
    choose(kernels, num_threads);
    lay_out();
}

Tables ChosenTables::tables() const {
    Tables tables = call_.tables;
    tables.page_indices = page_indices_.data();
    tables.page_starts = page_starts_.data();
    tables.query_starts = query_starts_.data();
    tables.context_lengths = context_lengths_.data();
    tables.num_sequences = int64_t(context_lengths_.size());
    tables.num_page_indices = int64_t(page_indices_.size());
    tables.cell_starts = cell_starts_.empty() ? nullptr : cell_starts_.data();
    tables.readings = nullptr;
    tables.head_pages = head_pages_.data();
    tables.page_numbers = page_numbers_.data();
    return tables;
}

const int32_t* ChosenTables::own_table(const Row& row) const { return table_of(call_.tables, row.sequence, 0); }

void ChosenTables::find_rows() {
    const int64_t size = call_.pages.page_tokens, heads = call_.pages.num_kv_heads;
    int64_t num_bounds = 0, num_chosen = 0;
    for (int64_t sequence = 0; sequence < call_.tables.num_sequences; sequence++) {
        const int64_t most_pages = call_.tables.readings[2 * sequence];
        const int64_t dense_layers = call_.tables.readings[2 * sequence + 1];
        if (most_pages == 0 || call_.pages.layer < dense_layers) continue;
        if (most_pages < kLeastPages) throw std::invalid_argument("a sequence may read too few pages");
        const int64_t past = past_tokens(call_.tables, sequence), count = new_tokens(call_.tables, sequence);
        for (int64_t token = 0; token < count; token++) {
            const int64_t num_pages = (past + token) / size + 1;
            if (num_pages <= most_pages) continue;
            rows_.push_back({sequence, token, num_pages, most_pages, num_bounds, num_chosen});
            num_bounds += heads * num_pages;
            num_chosen += heads * most_pages;
        }
    }
    bounds_.resize(size_t(num_bounds));
    chosen_.resize(size_t(num_chosen));
}

// Of pages between the first and the last of a row, all of which are full.
void ChosenTables::summarise(const KernelTable& kernels, int num_threads) {
    uint8_t* is_made = call_.pages.summaries.is_made;
    std::vector<int32_t> missing;
    for (size_t i = 0; i < rows_.size(); i++) {
        const Row& row = rows_[i];
        // The last row of a sequence sees what those before it see.
        if (i + 1 < rows_.size() && rows_[i + 1].sequence == row.sequence) continue;
        if (packed_pages(call_.tables, row.sequence) > 0)
            throw std::invalid_argument("pages cannot be chosen among packed ones");
        check_pages(call_.tables, call_.pages, row.sequence, 0, row.num_pages * call_.pages.page_tokens);
        const int32_t* table = own_table(row);
        std::copy_if(table + 1, table + row.num_pages - 1, std::back_inserter(missing),
                     [is_made](int32_t page) { return !is_made[page]; });
    }
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    if (missing.empty()) return;
    const size_t nbytes = size_t(kernels.scratch_nbytes(call_));
    const Memory memory = allocate_lines(nbytes * size_t(num_threads));
    in_turns(int64_t(missing.size()), num_threads, [&](int64_t i, int part) {
        kernels.summarise(call_, missing[size_t(i)], memory.get() + size_t(part) * nbytes);
    });
    for (int32_t page : missing) is_made[page] = 1;
}

void ChosenTables::choose(const KernelTable& kernels, int num_threads) {
    const int64_t group = group_heads(call_), heads = call_.pages.num_kv_heads;
    struct Part {
        const Row* row;
        int64_t head;
        int64_t first;
    };
    std::vector<Part> parts;
    for (const Row& row : rows_)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t first = 1; first < row.num_pages - 1; first += kBoundPages) parts.push_back({&row, head, first});
    const size_t nbytes = size_t(kernels.scratch_nbytes(call_));
    const Memory memory = allocate_lines(nbytes * size_t(num_threads));
    in_turns(int64_t(parts.size()), num_threads, [&](int64_t i, int thread) {
        const Part& part = parts[size_t(i)];
        const Row& row = *part.row;
        const Tile tile{row.sequence, part.head, row.token * group, group, 0, 0, 0, nullptr, nullptr};
        const int64_t count = std::min(kBoundPages, row.num_pages - 1 - part.first);
        float* bounds = bounds_.data() + row.first_bound + part.head * row.num_pages + part.first;
        kernels.bound_scores(call_, tile, part.first, count, bounds, memory.get() + size_t(thread) * nbytes);
    });
    std::vector<std::vector<int32_t>> kept(static_cast<size_t>(num_threads));
    in_turns(int64_t(rows_.size()) * heads, num_threads, [&](int64_t i, int thread) {
        const Row& row = rows_[size_t(i / heads)];
        const float* bounds = bounds_.data() + row.first_bound + i % heads * row.num_pages;
        int32_t* chosen = chosen_.data() + row.first_chosen + i % heads * row.most_pages;
        std::vector<int32_t>& best = kept[size_t(thread)];
        keep_best(bounds, row.num_pages, row.most_pages - 2, best);
        chosen[0] = 0;
        std::copy(best.begin(), best.end(), chosen + 1);
        chosen[row.most_pages - 1] = int32_t(row.num_pages - 1);
    });
}

// Rows before the first that chooses stay together.
void ChosenTables::lay_out() {
    const int64_t size = call_.pages.page_tokens, heads = call_.pages.num_kv_heads;
    page_starts_.push_back(0);
    query_starts_.push_back(0);
    auto row = rows_.begin();
    for (int64_t sequence = 0; sequence < call_.tables.num_sequences; sequence++) {
        const int64_t count = new_tokens(call_.tables, sequence), length = call_.tables.context_lengths[sequence];
        const bool chooses = row != rows_.end() && row->sequence == sequence;
        const int64_t dense = chooses ? row->token : count;
        if (dense > 0 || count == 0) {
            const int32_t* table = table_of(call_.tables, sequence, 0);
            page_indices_.insert(page_indices_.end(), table,
                                 call_.tables.page_indices + call_.tables.page_starts[sequence + 1]);
            page_numbers_.resize(page_indices_.size());
            add_sequence(sequence, dense, length - count + dense, 0);
        }
        for (; row != rows_.end() && row->sequence == sequence; ++row) {
            const int32_t *chosen = chosen_.data() + row->first_chosen, *table = own_table(*row);
            page_numbers_.insert(page_numbers_.end(), chosen, chosen + heads * row->most_pages);
            std::transform(chosen, chosen + heads * row->most_pages, std::back_inserter(page_indices_),
                           [table](int32_t number) { return table[number]; });
            const int64_t seen = length - count + row->token + 1;
            add_sequence(sequence, 1, seen - (row->num_pages - row->most_pages) * size, row->most_pages);
        }
    }
}

void ChosenTables::add_sequence(int64_t sequence, int64_t num_rows, int64_t length, int64_t num_head_pages) {
    page_starts_.push_back(int32_t(page_indices_.size()));
    query_starts_.push_back(query_starts_.back() + int32_t(num_rows));
    context_lengths_.push_back(int32_t(length));
    head_pages_.push_back(int32_t(num_head_pages));
    if (!call_.tables.cell_starts) return;
    const int32_t* cells = call_.tables.cell_starts + sequence * (call_.tables.page_cells + 1);
    cell_starts_.insert(cell_starts_.end(), cells, cells + call_.tables.page_cells + 1);
}

}  // namespace pagoda
