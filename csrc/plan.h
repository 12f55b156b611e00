// How one call is cut into work items.
#pragma once

#include <vector>

#include "sharing.h"

namespace pagoda {

// Tiles point into the other members.
struct Plan {
    std::vector<Tile> tiles;  // longest first
    std::vector<SplitTile> split_tiles;
    std::vector<SharedSplit> shared_splits;
    std::vector<float> statistics;
    std::vector<const float*> partials;
};

// Of each sequence, whether its new tokens do not simply follow one another; empty if all do. Throws
// std::invalid_argument where distances would be wrong.
std::vector<uint8_t> find_placed(const AttendCall& call);

// All of these throw std::invalid_argument if a page table contradicts itself or names a page that is not there. Packed
// rows are tokens of their sequence (`rows_are_tokens`) unless they attend to the output of an encoder.
Plan make_plan(const AttendCall& call, int num_threads);
// Of one sequence, for every KV head: tiles of so many rows and tokens, or fewer at the ends.
std::vector<Tile> score_tiles(const AttendCall& call, int64_t most_rows, int64_t most_tokens);
void check_scored(const AttendCall& call, int64_t num_rows);
void check_tables(const Tables& tables, const Pages& pages, int64_t num_rows, bool rows_are_tokens);
// Throws it where new tokens have slots or ancestors that cannot be.
void check_places(const Tables& tables, int64_t sequence);
void check_pages(const Tables& tables, const Pages& pages, int64_t sequence, int64_t first_token, int64_t last_token);

}  // namespace pagoda
