// What some queries make of every key of a sequence: their logits, or the weights of attention, summed over rows or the
// largest of them.
//
// Keys are read as attention reads them, but multiplied as floats on every instruction set: what tokens are kept hangs on
// small differences. Knows one sequence and no windows: a row sees what was stored before the call and the new tokens up
// to itself, or all there is if rows are none of the tokens (`Reach::encoder`).
#pragma once

#include "accumulator.h"
#include "keys.h"

namespace pagoda {
namespace {

// Scores of the rows of a tile, block by block of its context, which begins with a block.
template <class Words>
class TileScores {
  public:
    TileScores(const AttendCall& call, const Tile& tile, const Scratch& scratch)
        : call_(call), tile_(tile), scratch_(scratch), work_{call, tile, scratch}, arithmetic_(call.pages),
          keys_(work_, arithmetic_) {}

    // Calls see(row, first_token, count, scores, seen) for each row and block: of its `count` tokens the row sees the
    // first `seen`, whose products are in `scores`. There is anything behind them.
    template <class See>
    void run(const See& see) {
        keys_.pack_queries();
        for (int64_t token = tile_.first_token; token < tile_.last_token; token += kBlockTokens)
            run_block(find_block(call_, tile_, token, tile_.first_token, tile_.last_token, scratch_.edges), see);
    }

  private:
    typedef NumberKeys<VectorArithmetic<Words>> Keys;

    template <class See>
    void run_block(const Block& block, const See& see) {
        const int64_t tokens = panel_tokens(call_.pages), left = tile_.last_token - block.first_token;
        const int count = int(left < kBlockTokens ? left : kBlockTokens);
        keys_.read(block, Ahead{});
        for (int64_t row = 0; row < tile_.num_rows; row += Keys::kBandRows) {
            const int64_t rows = tile_.num_rows - row;
            const Band band{row, rows < Keys::kBandRows ? rows : Keys::kBandRows};
            const int most = seen(block, row + band.count - 1, count);
            if (most > 0) keys_.score(block, {0, int((most + tokens - 1) / tokens)}, band, Ahead{});
            for (int64_t i = 0; i < band.count; i++)
                see(row + i, block.first_token, count, scratch_.scores + i * kScoreStride, seen(block, row + i, count));
        }
    }

    int seen(const Block& block, int64_t row, int count) const {
        const int64_t position = past_tokens(call_.tables, 0) + place_of(call_, tile_, row).token;
        const int64_t end = end_of_reach(call_.rule, position, call_.tables.context_lengths[0]) - block.first_token;
        return int(end < 0 ? 0 : end < count ? end : count);
    }

    const AttendCall& call_;
    const Tile& tile_;
    const Scratch& scratch_;
    const Work work_;
    VectorArithmetic<Words> arithmetic_;
    Keys keys_;
};

template <class See>
void score(const AttendCall& call, const Tile& tile, const Scratch& scratch, const See& see) {
    switch (call.pages.number) {
        case Number::fp32: return TileScores<Fp32Words>(call, tile, scratch).run(see);
        case Number::fp16: return TileScores<Fp16Words>(call, tile, scratch).run(see);
        case Number::bf16: return TileScores<Bf16Words>(call, tile, scratch).run(see);
    }
}

inline Range range_of(int seen) { return {0, int(rounded_up(seen, kRangeTokens))}; }

inline void write_logits(const Rule& rule, float* scores, int seen, int count, float* target) {
    for (int token = 0; token < seen; token += kLanes) {
        const Floats logits = load(scores + token) * rule.scale;
        store(scores + token, rule.has_soft_cap ? tanh(logits * (1.0f / rule.soft_cap)) * rule.soft_cap : logits);
    }
    __builtin_memcpy(target, scores, size_t(seen) * sizeof(float));
    fill(target, {seen, count}, kNegativeInfinity);
}

inline void logits(const ScoreCall& call, const Tile& tile, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const AttendCall& attended = call.attended;
    score(attended, tile, lay_out(attended, cursor),
          [&](int64_t row, int64_t first_token, int count, float* scores, int seen) {
              const int64_t index = row_index(attended, place_of(attended, tile, row));
              float* target = call.logits + index * attended.tables.context_lengths[0] + first_token;
              write_logits(attended.rule, scores, seen, count, target);
          });
}

// Of every row of a tile that covers its whole context.
inline void sum_weights(const ScoreCall& call, const Tile& tile, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const AttendCall& attended = call.attended;
    const Scratch scratch = lay_out(attended, cursor);
    const Accumulator sums{scratch.total.maximum, scratch.total.sum, nullptr, 0};
    for (int64_t row = 0; row < tile.num_rows; row++) {
        sums.maximum[row] = kNegativeInfinity;
        sums.sum[row] = 0.0f;
    }
    score(attended, tile, scratch, [&](int64_t row, int64_t, int, float* scores, int seen) {
        const Range range = range_of(seen);
        softmax(scores, {{0, seen}, 0}, range, attended.rule, {}, sums, row,
                [&](float scale, float maximum) { return weigh(scores, scores, range, scale, maximum); });
    });
    for (int64_t row = 0; row < tile.num_rows; row++) {
        const RowPlace place = place_of(attended, tile, row);
        const int64_t index = row_index(attended, place);
        call.maxima[index] = sums.maximum[row];
        call.normalisers[index] = normaliser(attended, sums, row, place.head);
    }
}

inline void keep_larger(float* target, const float* scores, float normaliser, int count) {
    for (int token = 0; token < count; token++) {
        const float weight = scores[token] * normaliser;
        target[token] = weight > target[token] ? weight : target[token];
    }
}

// Adds the weights of all rows of `part`, which may be more than a tile has, to the tokens in its context, or has the
// largest of them there.
inline void add_weights(const ScoreCall& call, const Tile& part, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const AttendCall& attended = call.attended;
    const Scratch scratch = lay_out(attended, cursor);
    for (int64_t first_row = 0; first_row < part.num_rows; first_row += kTileRows) {
        Tile tile = part;
        tile.first_row = first_row;
        tile.num_rows = part.num_rows - first_row < kTileRows ? part.num_rows - first_row : kTileRows;
        score(attended, tile, scratch, [&](int64_t row, int64_t first_token, int, float* scores, int seen) {
            const RowPlace place = place_of(attended, tile, row);
            const int64_t index = row_index(attended, place);
            const float scale = transform(scores, range_of(seen), attended.rule, {});
            weigh(scores, scores, range_of(seen), scale, call.maxima[index]);
            float* target = call.mass + place.head * attended.tables.context_lengths[0] + first_token;
            const float normaliser = call.normalisers[index];
            if (call.is_peak) return keep_larger(target, scores, normaliser, seen);
            for (int token = 0; token < seen; token++) target[token] += scores[token] * normaliser;
        });
    }
}

}  // namespace
}  // namespace pagoda
