// What the parts of the kernel tell each other: the tile they are at work on, and which of its rows and panels.
#pragma once

#include "scratch.h"

namespace pagoda {
namespace {

// What the kernel is at work on.
struct Work {
    const AttendCall& call;
    const Tile& tile;
    const Scratch& scratch;
};

// Panels [first, last) of a block.
struct PanelRange {
    int first;
    int last;
};

// Rows [first, first + count) of a tile.
struct Band {
    int64_t first;
    int64_t count;
};

// For each panel of a block, the bytes that will be read after it; null where there are none.
struct Ahead {
    const uint8_t* runs[kMaxPanels];

    const uint8_t* of(int panel, const uint8_t* own) const { return runs[panel] ? runs[panel] : own; }
};

inline const uint8_t* query_data(const Work& work, int64_t row) {
    return row_data(work.call, work.call.query, place_of(work.call, work.tile, row));
}

}  // namespace
}  // namespace pagoda
