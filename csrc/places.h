// Where the new tokens of a sequence lie, and which of them see each other: one after the other, or as a table says.
//
// Knows tables and rules, no numbers.
#pragma once

#include "attention.h"

namespace pagoda {

// All new tokens before it are the ancestors of such a one. Others name them by the bits of a number.
constexpr int64_t kChain = -1;
constexpr int64_t kMostTreeTokens = 64;

static inline int64_t past_tokens(const Tables& tables, int64_t sequence) {
    return tables.context_lengths[sequence] - new_tokens(tables, sequence);
}

static inline bool is_placed(const AttendCall& call, int64_t sequence) { return call.placed && call.placed[sequence]; }

static inline int64_t slot_of(const Tables& tables, int64_t sequence, int64_t token) {
    if (tables.slots) return tables.slots[tables.query_starts[sequence] + token];
    return past_tokens(tables, sequence) + token;
}

// Of sequences that are not placed, slots stand for positions, where those matter.
static inline int64_t position_of(const AttendCall& call, int64_t sequence, int64_t token) {
    const Tables& tables = call.tables;
    if (is_placed(call, sequence) && tables.positions) return tables.positions[tables.query_starts[sequence] + token];
    return past_tokens(tables, sequence) + token;
}

// Whether a new token sees another.
static inline bool sees(const Tables& tables, int64_t sequence, int64_t token, int64_t other) {
    if (other >= token) return other == token;
    if (!tables.ancestors) return true;
    const int64_t ancestors = tables.ancestors[tables.query_starts[sequence] + token];
    return ancestors == kChain || (ancestors >> other & 1);
}

static inline bool is_near(const Rule& rule, int64_t position, int64_t other) {
    if (other < rule.sink_tokens) return true;
    if (rule.reach == Reach::sliding) return position - other < rule.span;
    if (rule.reach == Reach::chunked) return position / rule.span == other / rule.span;
    return true;
}

static inline bool needs_positions(const Rule& rule) {
    return rule.reach == Reach::sliding || rule.reach == Reach::chunked || rule.slopes || rule.biases.rows;
}

}  // namespace pagoda
