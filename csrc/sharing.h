// Which sequences of a batch read the same pages: what a decode step need read once only.
//
// Knows page tables, no numbers. The prefix tree gives sequences with a common prefix the same pages, so pages are
// compared by their numbers alone.
#pragma once

#include <vector>

#include "attention.h"

namespace pagoda {

// Sequences with one new token each, for all of which split `index` of the context lies wholly in reach, on the same
// pages.
struct SharedSplit {
    int64_t index;
    std::vector<int32_t> sequences;
};

// At most `max_sequences` to a split: where more share one, they are cut into several.
std::vector<SharedSplit> find_shared_splits(const AttendCall& call, int64_t max_sequences);

}  // namespace pagoda
