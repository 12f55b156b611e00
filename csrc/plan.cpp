// Cuts a call into tiles of rows, and splits the context of tiles that alone would keep one thread busy too long.
//
// Knows costs and page tables, no numbers. Cutting changes no result: see kSplitTokens in attention.h.
#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace pagoda {
namespace {

// A tile should take at most this share of a thread's work.
constexpr int64_t kTilesPerThread = 4;
// Reading a token costs about as much as the arithmetic of this many rows.
constexpr int64_t kReadRows = 16;

int64_t cost(const Tile& tile) { return (tile.last_token - tile.first_token) * (tile.num_rows + kReadRows); }

int64_t first_split(const Tile& tile) { return tile.first_token / kSplitTokens; }
int64_t num_splits(const Tile& tile) { return (tile.last_token - 1) / kSplitTokens + 1 - first_split(tile); }

void add_tiles(const AttendCall& call, int64_t sequence, std::vector<Tile>& tiles) {
    const int64_t group = group_heads(call), rows = new_tokens(call.tables, sequence) * group;
    const int64_t past = call.tables.context_lengths[sequence] - new_tokens(call.tables, sequence);
    for (int64_t head = 0; head < call.pages.num_kv_heads; head++)
        for (int64_t row = 0; row < rows; row += kTileRows) {
            const int64_t count = std::min(kTileRows, rows - row);
            const int64_t first = first_in_reach(call.rule, past + row / group);
            const int64_t last = past + (row + count - 1) / group + 1;
            tiles.push_back({sequence, head, row, count, first, last, nullptr});
        }
}

void split(const Tile& tile, Plan& plan) {
    for (int64_t index = first_split(tile); index < first_split(tile) + num_splits(tile); index++) {
        Tile part = tile;
        part.first_token = std::max(tile.first_token, index * kSplitTokens);
        part.last_token = std::min(tile.last_token, (index + 1) * kSplitTokens);
        plan.tiles.push_back(part);
    }
    plan.split_tiles.push_back({tile, nullptr, num_splits(tile)});
}

// Gives every split its place once the number of all of them is known. Parts were added in the order of their tiles.
void place_partials(const AttendCall& call, Plan& plan) {
    int64_t num_floats = 0;
    for (const SplitTile& splits : plan.split_tiles)
        num_floats += splits.count * splits.tile.num_rows * partial_floats(call);
    plan.partials.resize(size_t(num_floats));
    float* partial = plan.partials.data();
    Tile* part = plan.tiles.data();
    for (SplitTile& splits : plan.split_tiles) {
        splits.partials = partial;
        for (int64_t index = 0; index < splits.count; index++, part++) {
            part->partial = partial;
            partial += splits.tile.num_rows * partial_floats(call);
        }
    }
}

void check_sequence(const Tables& tables, const Pages& pages, int64_t sequence) {
    const int64_t length = tables.context_lengths[sequence], added = new_tokens(tables, sequence);
    const int64_t num_pages = tables.page_starts[sequence + 1] - tables.page_starts[sequence];
    if (added < 0 || added > length) throw std::invalid_argument("a sequence has more new tokens than tokens");
    if (tables.page_starts[sequence] < 0 || tables.page_starts[sequence + 1] > tables.num_page_indices)
        throw std::invalid_argument("page_starts does not fit page_indices");
    if (num_pages < 0 || num_pages * pages.page_tokens < length)
        throw std::invalid_argument("a sequence has fewer pages than its tokens need");
}

}  // namespace

void check_tables(const Tables& tables, const Pages& pages, int64_t num_rows) {
    if (tables.query_starts[0] != 0 || tables.query_starts[tables.num_sequences] != num_rows)
        throw std::invalid_argument("query_starts does not cover the packed rows");
    for (int64_t sequence = 0; sequence < tables.num_sequences; sequence++) check_sequence(tables, pages, sequence);
}

void check_pages(const Tables& tables, const Pages& pages, int64_t sequence, int64_t first_token, int64_t last_token) {
    const int32_t* table = tables.page_indices + tables.page_starts[sequence];
    for (int64_t page = first_token / pages.page_tokens; page * pages.page_tokens < last_token; page++)
        if (table[page] < 0 || table[page] >= pages.num_pages)
            throw std::invalid_argument("a page table names a page that the pool does not have");
}

Plan make_plan(const AttendCall& call, int num_threads) {
    std::vector<Tile> tiles;
    for (int64_t sequence = 0; sequence < call.tables.num_sequences; sequence++) {
        const int64_t added = new_tokens(call.tables, sequence), length = call.tables.context_lengths[sequence];
        if (added == 0) continue;
        check_pages(call.tables, call.pages, sequence, first_in_reach(call.rule, length - added), length);
        add_tiles(call, sequence, tiles);
    }
    int64_t total = 0;
    for (const Tile& tile : tiles) total += cost(tile);
    const auto is_long = [&](const Tile& tile) {
        return num_threads > 1 && num_splits(tile) > 1 && cost(tile) * num_threads * kTilesPerThread > total;
    };
    Plan plan;
    for (const Tile& tile : tiles)
        if (is_long(tile)) split(tile, plan);
    place_partials(call, plan);
    for (const Tile& tile : tiles)
        if (!is_long(tile)) plan.tiles.push_back(tile);
    std::stable_sort(plan.tiles.begin(), plan.tiles.end(),
                     [](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
    return plan;
}

}  // namespace pagoda
