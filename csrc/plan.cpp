// Cuts a call into tiles of rows, and splits the context of tiles that alone would keep one thread busy too long, or
// that share a part of it with others.
//
// Knows costs and page tables, no numbers. Cutting changes no result: see kSplitTokens in attention.h.
#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cells.h"
#include "places.h"

namespace pagoda {
namespace {

// A tile should take at most this share of a thread's work.
constexpr int64_t kTilesPerThread = 4;
// Reading a token costs about as much as the arithmetic of this many rows.
constexpr int64_t kReadRows = 16;

int64_t cost(const Tile& tile) {
    return (tile.last_token - tile.first_token + tile.sink_end) * (tile.num_rows + kReadRows);
}

int64_t first_split(const Tile& tile) { return tile.first_token / kSplitTokens; }
// Those of the sinks that lie before.
int64_t num_sink_splits(const Tile& tile) {
    return std::min(first_split(tile), (tile.sink_end + kSplitTokens - 1) / kSplitTokens);
}
int64_t num_splits(const Tile& tile) {
    return num_sink_splits(tile) + (tile.last_token - 1) / kSplitTokens + 1 - first_split(tile);
}

// The first token in reach of new tokens from `token` on, but for sinks.
int64_t first_of_context(const AttendCall& call, int64_t sequence, int64_t token) {
    const int64_t past = past_tokens(call.tables, sequence);
    if (!is_placed(call, sequence)) return first_in_reach(call.rule, past + token);
    int64_t first = past;
    for (int64_t other = 0; other < new_tokens(call.tables, sequence); other++)
        first = std::min(first, first_in_reach(call.rule, position_of(call, sequence, other)));
    return first;
}

// A tile for so many rows from `row` on.
Tile tile_of(const AttendCall& call, int64_t sequence, int64_t head, int64_t row, int64_t count) {
    const int64_t group = group_heads(call), length = head_length(call.tables, call.pages, sequence, head);
    const int64_t last_position = length - new_tokens(call.tables, sequence) + (row + count - 1) / group;
    const int64_t last = is_placed(call, sequence) ? length : end_of_reach(call.rule, last_position, length);
    const int64_t first = first_of_context(call, sequence, row / group), sinks = std::min(call.rule.sink_tokens, last);
    if (sinks > 0 && sinks >= first) return {sequence, head, row, count, 0, last, 0, nullptr, nullptr};
    return {sequence, head, row, count, first, last, sinks, nullptr, nullptr};
}

void add_tiles(const AttendCall& call, int64_t sequence, std::vector<Tile>& tiles) {
    const int64_t rows = new_tokens(call.tables, sequence) * group_heads(call);
    for (int64_t head = 0; head < call.pages.num_kv_heads; head++)
        for (int64_t row = 0; row < rows; row += kTileRows)
            tiles.push_back(tile_of(call, sequence, head, row, std::min(kTileRows, rows - row)));
}

// A plan in the making. Where statistics lie is known when all are counted; until then they have places, in floats.
class Cutter {
  public:
    explicit Cutter(const AttendCall& call) : call_(call), seats_(size_t(call.tables.num_sequences)) {}

    void add_whole(const Tile& tile) { add(tile, kNoPlace); }

    // A tile of all queries of `shared` for each KV head: sequence by sequence, as many rows as a group has heads.
    void add_shared(const SharedSplit& shared) {
        const int64_t group = group_heads(call_), rows = int64_t(shared.sequences.size()) * group;
        const int64_t first = num_floats_, head_floats = rows * partial_floats(call_);
        for (int64_t head = 0; head < call_.pages.num_kv_heads; head++)
            add({shared.sequences[0], head, 0, rows, shared.index * kSplitTokens, (shared.index + 1) * kSplitTokens,
                 0, nullptr, shared.sequences.data()},
                take(rows));
        for (size_t i = 0; i < shared.sequences.size(); i++)
            seats_[size_t(shared.sequences[i])].push_back(
                {shared.index, first + int64_t(i) * group * partial_floats(call_), head_floats});
    }

    bool shares(const Tile& tile) const { return !seats_[size_t(tile.sequence)].empty(); }

    // A tile for each split that is not shared. Shared splits have been added before, in order.
    void add_cut(const Tile& tile) {
        const std::vector<Seat>& seats = seats_[size_t(tile.sequence)];
        auto seat = seats.begin();
        for (int64_t index = 0; index < num_sink_splits(tile); index++)
            add_part(tile, index * kSplitTokens, std::min(tile.sink_end, (index + 1) * kSplitTokens), 0);
        const int64_t last_split = (tile.last_token - 1) / kSplitTokens;
        for (int64_t index = first_split(tile); index <= last_split; index++) {
            while (seat != seats.end() && seat->split < index) ++seat;
            if (seat != seats.end() && seat->split == index) {
                partial_places_.push_back(seat->place + tile.kv_head * seat->head_floats);
                continue;
            }
            add_part(tile, std::max(tile.first_token, index * kSplitTokens),
                     std::min(tile.last_token, (index + 1) * kSplitTokens),
                     tile.sink_end > index * kSplitTokens ? tile.sink_end : 0);
        }
        plan_.split_tiles.push_back({tile, nullptr, num_splits(tile)});
    }

    Plan finish(std::vector<SharedSplit> shared) {
        plan_.statistics.resize(size_t(num_floats_));
        for (size_t i = 0; i < tile_places_.size(); i++)
            if (tile_places_[i] != kNoPlace) plan_.tiles[i].partial = plan_.statistics.data() + tile_places_[i];
        for (int64_t place : partial_places_) plan_.partials.push_back(plan_.statistics.data() + place);
        const float* const* partials = plan_.partials.data();
        for (SplitTile& splits : plan_.split_tiles) {
            splits.partials = partials;
            partials += splits.count;
        }
        plan_.shared_splits = std::move(shared);
        std::stable_sort(plan_.tiles.begin(), plan_.tiles.end(),
                         [](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
        return std::move(plan_);
    }

  private:
    static constexpr int64_t kNoPlace = -1;

    // Where a sequence finds its rows of a shared split: those of the first KV head, and the way to the next head's.
    struct Seat {
        int64_t split;
        int64_t place;
        int64_t head_floats;
    };

    void add(const Tile& tile, int64_t place) {
        plan_.tiles.push_back(tile);
        tile_places_.push_back(place);
    }

    void add_part(const Tile& tile, int64_t first_token, int64_t last_token, int64_t sink_end) {
        Tile part = tile;
        part.first_token = first_token;
        part.last_token = last_token;
        part.sink_end = sink_end;
        partial_places_.push_back(take(tile.num_rows));
        add(part, partial_places_.back());
    }

    int64_t take(int64_t rows) {
        const int64_t place = num_floats_;
        num_floats_ += rows * partial_floats(call_);
        return place;
    }

    const AttendCall& call_;
    Plan plan_;
    std::vector<std::vector<Seat>> seats_;
    std::vector<int64_t> tile_places_;
    std::vector<int64_t> partial_places_;
    int64_t num_floats_ = 0;
};

// Sharing a split saves all but one of its reads, and fills the rows of a tile. It also leaves fewer tiles: one must not
// cost more than a thread's even share of the work without sharing.
int64_t most_sharing(const AttendCall& call, int64_t total, int num_threads) {
    const int64_t rows = std::min(kTileRows, total / num_threads / kSplitTokens - kReadRows);
    return call.shares_splits && !call.placed ? rows / group_heads(call) : 0;
}

// Packed pages are full, and new tokens follow behind them.
void check_cells(const Tables& tables, const Pages& pages, int64_t sequence) {
    if (packed_pages(tables, sequence) == 0) return;
    const int64_t heads = pages.num_kv_heads, first = pages.layer * heads;
    if (pages.layer_nbytes == 0 || tables.page_cells % heads != 0 || first + heads > tables.page_cells)
        throw std::invalid_argument("pages are packed whose layers are not alike");
    const int32_t* starts = tables.cell_starts + sequence * (tables.page_cells + 1);
    if (starts[first] < 0 || starts[first + heads] > starts[tables.page_cells] ||
        !std::is_sorted(starts + first, starts + first + heads + 1))
        throw std::invalid_argument("the cells of a head are none of the packed pages");
    if (packed_pages(tables, sequence) * pages.page_tokens > past_tokens(tables, sequence))
        throw std::invalid_argument("a sequence has more packed pages than stored tokens fill");
    if (tables.slots || tables.ancestors)
        throw std::invalid_argument("new tokens behind packed pages must follow one another");
}

void check_sequence(const Tables& tables, const Pages& pages, int64_t sequence, bool rows_are_tokens) {
    const int64_t length = tables.context_lengths[sequence], added = new_tokens(tables, sequence);
    const int64_t num_pages = tables.page_starts[sequence + 1] - tables.page_starts[sequence];
    if (added < 0 || (rows_are_tokens && added > length)) throw std::invalid_argument("a sequence has more new tokens than tokens");
    if (tables.page_starts[sequence] < 0 || tables.page_starts[sequence + 1] > tables.num_page_indices)
        throw std::invalid_argument("page_starts does not fit page_indices");
    if (num_pages < 0 || num_pages * pages.page_tokens < length)
        throw std::invalid_argument("a sequence has fewer pages than its tokens need");
    const KeyConstants& constants = pages.constants;
    if (constants.num_pairs > 0 && length > (constants.turn_stride - KeyConstants::kTurnEdge) * pages.page_tokens)
        throw std::invalid_argument("a sequence is longer than its keys' constants are turned for");
    check_cells(tables, pages, sequence);
    if (rows_are_tokens) check_places(tables, sequence);
}

}  // namespace

void check_tables(const Tables& tables, const Pages& pages, int64_t num_rows, bool rows_are_tokens) {
    if (tables.query_starts[0] != 0 || tables.query_starts[tables.num_sequences] != num_rows)
        throw std::invalid_argument("query_starts does not cover the packed rows");
    for (int64_t sequence = 0; sequence < tables.num_sequences; sequence++)
        check_sequence(tables, pages, sequence, rows_are_tokens);
}

void check_pages(const Tables& tables, const Pages& pages, int64_t sequence, int64_t first_token, int64_t last_token) {
    const int32_t* table = tables.page_indices + tables.page_starts[sequence];
    for (int64_t page = first_token / pages.page_tokens; page * pages.page_tokens < last_token; page++)
        if (table[page] < 0 || table[page] >= pages.num_pages)
            throw std::invalid_argument("a page table names a page that the pool does not have");
}

void check_scored(const AttendCall& call, int64_t num_rows) {
    if (call.tables.num_sequences != 1) throw std::invalid_argument("keys are scored for one sequence at a time");
    if (packed_pages(call.tables, 0) > 0) throw std::invalid_argument("keys of packed pages are not scored");
    check_tables(call.tables, call.pages, num_rows, call.rule.reach != Reach::encoder);
    check_pages(call.tables, call.pages, 0, 0, call.tables.context_lengths[0]);
}

std::vector<Tile> score_tiles(const AttendCall& call, int64_t most_rows, int64_t most_tokens) {
    const int64_t rows = new_tokens(call.tables, 0) * group_heads(call), length = call.tables.context_lengths[0];
    std::vector<Tile> tiles;
    for (int64_t head = 0; head < call.pages.num_kv_heads; head++)
        for (int64_t row = 0; row < rows; row += most_rows)
            for (int64_t token = 0; token < length; token += most_tokens)
                tiles.push_back({0, head, row, std::min(most_rows, rows - row), token,
                                 std::min(token + most_tokens, length), 0, nullptr, nullptr});
    return tiles;
}

Plan make_plan(const AttendCall& call, int num_threads) {
    std::vector<Tile> tiles;
    for (int64_t sequence = 0; sequence < call.tables.num_sequences; sequence++) {
        const int64_t added = new_tokens(call.tables, sequence), length = call.tables.context_lengths[sequence];
        if (added == 0) continue;
        check_pages(call.tables, call.pages, sequence, first_of_context(call, sequence, 0), length);
        check_pages(call.tables, call.pages, sequence, 0, std::min(call.rule.sink_tokens, length));
        add_tiles(call, sequence, tiles);
    }
    int64_t total = 0;
    for (const Tile& tile : tiles) total += cost(tile);
    std::vector<SharedSplit> shared = find_shared_splits(call, most_sharing(call, total, num_threads));
    Cutter cutter(call);
    for (const SharedSplit& split : shared) cutter.add_shared(split);
    for (const Tile& tile : tiles) {
        const bool is_long =
            num_threads > 1 && num_splits(tile) > 1 && cost(tile) * num_threads * kTilesPerThread > total;
        if (is_long || cutter.shares(tile))
            cutter.add_cut(tile);
        else
            cutter.add_whole(tile);
    }
    return cutter.finish(std::move(shared));
}

}  // namespace pagoda
