// How the weights of a band meet the values of a block: as numbers, or as bytes if values are small integers.
//
// Both read what must be decoded, or turned if it is latents, once a block; then, for each band, make weights of scores
// and add the weighted values. For bytes the weights of a row are integers of 15 or 16 bits, times the largest weight of
// the block over the largest such integer.
#pragma once

#include "keys.h"
#include "turn.h"

namespace pagoda {
namespace {

// Tokens that no row may see get scales of zero.
inline void read_value_scales(const Pages& pages, const Block& block, int panel, float* scales) {
    const int64_t tokens = panel_tokens(pages), first_token = block.first_token + panel * tokens;
    read_row(scales + panel * tokens, block.value_levels[panel].scales, Number::bf16, tokens);
    if (first_token >= block.begin && first_token + tokens <= block.end) return;
    for (int64_t token = 0; token < tokens; token++)
        if (first_token + token < block.begin || first_token + token >= block.end) scales[panel * tokens + token] = 0.0f;
}

inline void clear_scales(float* scales) {
    for (int64_t token = 0; token < kBlockTokens; token++) scales[token] = 0.0f;
}

inline CodedPanel coded_values(const Pages& pages, const Block& block, int panel, const Ahead& ahead) {
    const int64_t columns = code_nbytes(pages.value.encoding, pages.value.width);
    return {block.value[panel], columns * 4, panel_tokens(pages) / kWordCodes, columns,
            ahead.of(panel, block.value[panel])};
}

template <class Arithmetic>
class NumberValues {
  public:
    typedef typename Arithmetic::Factor Factor;

    static constexpr int64_t kBandRows = pagoda::kBandRows;

    NumberValues(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic) {
        if (has_codes(pages().value)) clear_scales(work.scratch.value_scales);
    }

    void read(const Block& block, const Ahead& ahead) {
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = pages().values_in_keys ? turned(block, panel, ahead) : block.value[panel];
            if (!has_codes(pages().value) || pages().values_in_keys) continue;
            CodedPanel codes = coded_values(pages(), block, panel, ahead);
            if (pages().value.encoding == Encoding::int4) {
                unpack_values(codes, groups_of(pages(), pages().value, block.value_levels[panel]), work_.scratch.steps,
                              work_.scratch.bytes);
                codes = {work_.scratch.bytes, codes.row_nbytes * 2, codes.rows, codes.columns * 2, work_.scratch.bytes};
            }
            uint8_t* target = work_.scratch.values + panel * value_panel_nbytes(pages());
            decode(pages().value.encoding, codes, target);
            panels_[panel] = target;
            read_value_scales(pages(), block, panel, work_.scratch.value_scales);
        }
    }

    // Weights of row `row` of a band that begins at row `first_row` of the tile.
    void weigh(Sight sight, Range range, const Slant& slant, int64_t first_row, int64_t row) {
        float* scores = work_.scratch.scores + row * kScoreStride;
        Factor* weights = static_cast<Factor*>(work_.scratch.weights) + row * kWeightStride;
        const auto weigh_row = [&](float scale, float maximum) {
            if (!has_codes(pages().value)) return pagoda::weigh(scores, weights, range, scale, maximum);
            return weigh_codes(scores, weights, range, scale, maximum, work_.scratch.value_scales);
        };
        if (softmax(scores, sight, range, work_.call.rule, slant, work_.scratch.split, first_row + row, weigh_row))
            return;
        for (int token = range.first; token < range.last; token++) weights[token] = 0;
    }

    void add(PanelRange panels, const Band& band, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        const Left<Factor> weights{static_cast<const Factor*>(work_.scratch.weights) + panels.first * tokens,
                                   kWeightStride, int(band.count)};
        const uint8_t* next[kMaxPanels];
        const bool is_read_here = band.first == 0 && !has_codes(pages().value) && !pages().values_in_keys;
        for (int panel = panels.first; panel < panels.last; panel++)
            next[panel] = is_read_here ? ahead.of(panel, panels_[panel]) : panels_[panel];
        const Panels values{panels_ + panels.first, next + panels.first, panels.last - panels.first,
                            tokens / word_numbers(pages()), value_row_nbytes(pages()), pages().value.width};
        const Accumulator& split = work_.scratch.split;
        arithmetic_.values(weights, values, {split.values + band.first * split.stride, split.stride, true});
    }

  private:
    // The values of a panel of latents. Tokens that do not count are zero, or have scales of zero.
    const uint8_t* turned(const Block& block, int panel, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages()), first = block.first_token + panel * tokens;
        KeyPanel keys{block.key[panel], key_row_nbytes(pages()), tokens, 0, tokens};
        if (has_codes(pages().key)) {
            decode_keys(pages(), block, panel, ahead, work_.scratch.bytes, work_.scratch.latents);
            keys.data = work_.scratch.latents;
            keys.row_nbytes = tokens * 4;
            read_value_scales(pages(), block, panel, work_.scratch.value_scales);
        } else {
            keys.first = block.begin > first ? block.begin - first : 0;
            keys.last = block.end < first + tokens ? block.end - first : tokens;
        }
        uint8_t* target = work_.scratch.values + panel * value_panel_nbytes(pages());
        turn_panel(keys, pages().number, pages().value.width, target);
        return target;
    }

    const Pages& pages() const { return work_.call.pages; }

    const Work& work_;
    Arithmetic& arithmetic_;
    const uint8_t* panels_[kMaxPanels];
};

#if defined(__AVX2__)

template <class Arithmetic>
class ByteValues {
  public:
    static constexpr int64_t kBandRows = pagoda::kBandRows / 2;

    ByteValues(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic) {
        clear_scales(work.scratch.value_scales);
    }

    void read(const Block& block, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = block.value[panel];
            read_value_scales(pages(), block, panel, work_.scratch.value_scales);
            if (!is_packed()) continue;
            uint8_t* target = work_.scratch.values + panel * tokens * pages().value.width;
            unpack_values(coded_values(pages(), block, panel, ahead),
                          groups_of(pages(), pages().value, block.value_levels[panel]), work_.scratch.steps, target);
            panels_[panel] = target;
        }
    }

    void weigh(Sight sight, Range range, const Slant& slant, int64_t first_row, int64_t row) {
        float* scores = work_.scratch.scores + row * kScoreStride;
        float largest = 0.0f;
        const auto weigh_row = [&](float scale, float maximum) {
            return weigh_bytes(scores, range, scale, maximum, work_.scratch.value_scales, &largest);
        };
        if (!softmax(scores, sight, range, work_.call.rule, slant, work_.scratch.split, first_row + row, weigh_row))
            fill(scores, range, 0.0f);
        const float bounded = largest > kSmallest ? largest : kSmallest;
        work_.scratch.units[row] = largest == largest ? bounded / kLargest : largest;
        inverses_[row] = kLargest / bounded;
    }

    void add(PanelRange panels, const Band& band, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages()), stride = work_.scratch.parts_stride;
        CodeFactor* weights = static_cast<CodeFactor*>(work_.scratch.weights);
        for (int64_t row = 0; row < band.count; row++)
            pack(row, {int(panels.first * tokens), int(panels.last * tokens)}, weights + row * kWeightStride,
                 weights + (band.count + row) * kWeightStride);
        const Left<CodeFactor> left{weights + panels.first * tokens, kWeightStride, int(kFactorParts * band.count)};
        const uint8_t* next[kMaxPanels];
        for (int panel = panels.first; panel < panels.last; panel++)
            next[panel] = band.first == 0 && !is_packed() ? ahead.of(panel, panels_[panel]) : panels_[panel];
        const Panels values{panels_ + panels.first, next + panels.first, panels.last - panels.first,
                            tokens / kWordCodes, value_row_nbytes(pages()), pages().value.width};
        arithmetic_.byte_values(left, values, {work_.scratch.parts, stride, false});
        const Accumulator& split = work_.scratch.split;
        for (int64_t row = 0; row < band.count; row++) {
            const int32_t* high = work_.scratch.parts + row * stride;
            const int32_t* low = high + band.count * stride;
            float* sums = split.values + (band.first + row) * split.stride;
            const Floats unit = splat(work_.scratch.units[row]);
            for (int64_t channel = 0; channel < pages().value.width; channel += kLanes)
                store(sums + channel, load(sums + channel) + joined(high + channel, low + channel) * unit);
        }
    }

  private:
    static constexpr float kLargest = kFactorParts == 1 ? 32767.0f : 65535.0f;

    const Pages& pages() const { return work_.call.pages; }
    bool is_packed() const { return pages().value.encoding == Encoding::int4; }

    void pack(int64_t row, Range range, CodeFactor* high, CodeFactor* low) const {
        const float* weights = work_.scratch.scores + row * kScoreStride;
        for (int token = range.first; token < range.last; token += kLanes)
            keep_factors(high, low, token, load(weights + token) * inverses_[row]);
    }

    const Work& work_;
    Arithmetic& arithmetic_;
    const uint8_t* panels_[kMaxPanels];
    float inverses_[kBandRows];
};

#endif

}  // namespace
}  // namespace pagoda
