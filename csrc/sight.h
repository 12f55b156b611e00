// What a row sees of a block of tokens: those in reach, and where a table says so, some of the new ones only.
//
// Hides the others' scores. Knows no softmax; distances of new tokens are put right where slots are not positions.
#pragma once

#include "exponential.h"
#include "places.h"

namespace pagoda {
namespace {

// Tokens [first, last), counted from the start of a block.
struct Range {
    int first;
    int last;
};

// A row of a sequence that is placed: number `token` of its new ones.
struct PlacedRow {
    const AttendCall* call;
    int64_t sequence;
    int64_t token;
    int64_t first_token;  // of the block
};

// What distance does to the scores of one row. They lose `slope` for each token between, of which token 0 of the block
// has `-offset`; or a score gains a bias, which for token 0 of the block is `biases[first_bias]`. What lies beyond the
// `num_biases` of them is the edges of `Biases`. Where new tokens do not simply follow one another, `placed` says how.
struct Slant {
    float slope;
    float offset;
    const float* biases;
    int64_t first_bias;
    int64_t num_biases;
    const PlacedRow* placed;
};

// Tokens in reach: `tokens` and those before `sink_end`. Of a row that is placed, new ones may be hidden among them.
// Small enough for registers: it is made for every row of every block.
struct Sight {
    Range tokens;
    int sink_end;
};

inline void fill(float* data, Range range, float value) {
    for (int token = range.first; token < range.last; token++) data[token] = value;
}

inline bool is_blind(Sight sight, Range range) {
    return sight.tokens.first >= sight.tokens.last && sight.sink_end <= range.first;
}

// The bias of a token so far back, where `index` is that of distance 0 or beyond it.
inline float bias_of(const Slant& slant, int64_t distance) {
    const int64_t index = slant.num_biases - 1 - distance;
    return slant.biases[index < -1 ? -1 : index < slant.num_biases ? index : slant.num_biases];
}

// What a score of base two gains if its token lies `distance` back and not as far as its slot says.
inline float slant_change(const Slant& slant, int64_t by_slot, int64_t distance) {
    if (slant.biases) return (bias_of(slant, distance) - bias_of(slant, by_slot)) * kLog2E;
    return slant.slope * float(by_slot - distance) * kLog2E;
}

// Rows that are placed are few. Kept apart, so that the others' code is as if there were none.
__attribute__((noinline, cold)) void place(float* scores, Range range, const Slant& slant) {
    const PlacedRow& row = *slant.placed;
    const AttendCall& call = *row.call;
    const int64_t position = position_of(call, row.sequence, row.token);
    for (int64_t other = 0; other < new_tokens(call.tables, row.sequence); other++) {
        const int64_t slot = slot_of(call.tables, row.sequence, other), token = slot - row.first_token;
        if (token < range.first || token >= range.last) continue;
        const int64_t place = position_of(call, row.sequence, other);
        if (!sees(call.tables, row.sequence, row.token, other) || !is_near(call.rule, position, place))
            scores[token] = kNegativeInfinity;
        else if (place != slot)
            scores[token] += slant_change(slant, position - slot, position - place);
    }
}

// Scores of what a row does not see become infinitely small.
inline void hide(float* scores, Range range, Sight sight, const Slant& slant) {
    fill(scores, {range.first > sight.sink_end ? range.first : sight.sink_end, sight.tokens.first}, kNegativeInfinity);
    fill(scores, {sight.tokens.last, range.last}, kNegativeInfinity);
    if (slant.placed) place(scores, range, slant);
}

}  // namespace
}  // namespace pagoda
