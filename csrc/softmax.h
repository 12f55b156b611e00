// Online softmax of one row over one block of tokens: scores become weights, and what was summed before is rescaled.
//
// Works in powers of two: maxima are kept as log2(e) x the scaled score. Weights are summed as they will be used, after
// rounding to the left factor's type, so that they sum to one.
#pragma once

#include "attention.h"
#include "exponential.h"
#include "numbers.h"
#include "sight.h"

namespace pagoda {
namespace {

// What a tile's rows have summed so far: per row the largest score, the sum of weights, the weighted sum of values.
struct Accumulator {
    float* maximum;
    float* sum;
    float* values;
    int64_t stride;
};

// Whole vectors of every instruction set, and of pairs of them, begin at its multiples.
constexpr int kRangeTokens = 32;

inline float maximum_of(const float* scores, Range range) {
    constexpr int kVectors = kRangeTokens / kLanes;
    Floats largest[kVectors];
    for (int vector = 0; vector < kVectors; vector++) largest[vector] = splat(kNegativeInfinity);
    for (int token = range.first; token < range.last; token += kRangeTokens)
        for (int vector = 0; vector < kVectors; vector++)
            largest[vector] = maximum(largest[vector], load(scores + token + vector * kLanes));
    for (int vector = 1; vector < kVectors; vector++) largest[0] = maximum(largest[0], largest[vector]);
    return horizontal_maximum(largest[0]);
}

// weights = 2^(scale * scores - maximum); returns their sum.
inline float weigh(const float* scores, float* weights, Range range, float scale, float maximum) {
    Floats sum{};
    for (int token = range.first; token < range.last; token += kLanes) {
        const Floats weight = exp2(load(scores + token) * scale - maximum);
        store(weights + token, weight);
        sum += weight;
    }
    return horizontal_sum(sum);
}

#if defined(__AVX512BF16__)

inline float weigh(const float* scores, Bf16* weights, Range range, float scale, float maximum) {
    const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
    Floats sum{};
    for (int token = range.first; token < range.last; token += 2 * kLanes) {
        const Floats low = exp2_coarse(load(scores + token) * scale - maximum);
        const Floats high = exp2_coarse(load(scores + token + kLanes) * scale - maximum);
        const __m512bh pair = _mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(weights + token, reinterpret_cast<__m512i>(pair));
        sum = _mm512_dpbf16_ps(sum, pair, ones);
    }
    return horizontal_sum(sum);
}

#endif

// As above, for values that are codes: weights are multiplied by the scales of their tokens, which are zero for those
// that do not count, while the sum is of them as they were.
inline float weigh_codes(const float* scores, float* weights, Range range, float scale, float maximum,
                         const float* scales) {
    Floats sum{};
    for (int token = range.first; token < range.last; token += kLanes) {
        const Floats weight = exp2(load(scores + token) * scale - maximum);
        store(weights + token, weight * load(scales + token));
        sum += weight;
    }
    return horizontal_sum(sum);
}

#if defined(__AVX512BF16__)

inline float weigh_codes(const float* scores, Bf16* weights, Range range, float scale, float maximum,
                         const float* scales) {
    Floats sum{};
    for (int token = range.first; token < range.last; token += 2 * kLanes) {
        const Floats low = exp2_coarse(load(scores + token) * scale - maximum);
        const Floats high = exp2_coarse(load(scores + token + kLanes) * scale - maximum);
        const __m512bh pair =
            _mm512_cvtne2ps_pbh(high * load(scales + token + kLanes), low * load(scales + token));
        _mm512_storeu_si512(weights + token, reinterpret_cast<__m512i>(pair));
        sum += low + high;
    }
    return horizontal_sum(sum);
}

#endif
#if defined(__AVX2__)

// As above, in the scores' room; also tells the largest product of weight and scale, NaN if any is.
inline float weigh_bytes(float* scores, Range range, float scale, float maximum_score, const float* scales,
                         float* largest) {
    Floats sum{}, most{}, scaled_sum{};
    for (int token = range.first; token < range.last; token += kLanes) {
        const Floats weight = exp2_coarse(load(scores + token) * scale - maximum_score);
        const Floats scaled = weight * load(scales + token);
        store(scores + token, scaled);
        most = maximum(most, scaled);
        scaled_sum += scaled;
        sum += weight;
    }
    const float total = horizontal_sum(scaled_sum);
    *largest = total == total ? horizontal_maximum(most) : total;
    return horizontal_sum(sum);
}

#endif

inline Floats biases_from(const Slant& slant, int token) {
    const int64_t index = token + slant.first_bias;
    const int64_t first = index > -Biases::kEdge ? index : -Biases::kEdge;
    return load(slant.biases + (first < slant.num_biases ? first : slant.num_biases));
}

// A plain positive scale is applied with the exponential; anything else first, in place. Returns the scale that is
// left.
inline float transform(float* scores, Range range, const Rule& rule, const Slant& slant) {
    if (!rule.has_soft_cap && rule.scale > 0.0f && slant.slope == 0.0f && !slant.biases) return rule.scale * kLog2E;
    for (int token = range.first; token < range.last; token += kLanes) {
        const Floats score = load(scores + token) * rule.scale;
        const Floats capped = rule.has_soft_cap ? tanh(score * (1.0f / rule.soft_cap)) * rule.soft_cap : score;
        const Floats slanted = capped + (lane_numbers() + (float(token) + slant.offset)) * slant.slope;
        store(scores + token, (slant.biases ? slanted + biases_from(slant, token) : slanted) * kLog2E);
    }
    return 1.0f;
}

inline void scale_values(float* values, int64_t width, float factor) {
    for (int64_t channel = 0; channel < width; channel += kLanes)
        store(values + channel, load(values + channel) * factor);
}

inline float exp2_of(float x) { return exp2(splat(x))[0]; }

// Whether the row sees any token. What it sees lies in `range`, whose bounds are multiples of kRangeTokens; weights of
// other tokens are zero. `weigh_row(scale, maximum)` turns the scores into weights and returns their sum.
template <class WeighRow>
bool softmax(float* scores, Sight sight, Range range, const Rule& rule, const Slant& slant, const Accumulator& sums,
             int64_t row, WeighRow weigh_row) {
    if (is_blind(sight, range)) return false;
    const float scale = transform(scores, range, rule, slant);
    hide(scores, range, sight, slant);
    const float before = sums.maximum[row];
    const float block = maximum_of(scores, range) * scale;
    if (slant.placed && block == kNegativeInfinity) return false;
    const float maximum = block > before ? block : before;
    const float factor = maximum > before ? exp2_of(before - maximum) : 1.0f;
    if (maximum > before) scale_values(sums.values + row * sums.stride, sums.stride, factor);
    sums.maximum[row] = maximum;
    sums.sum[row] = sums.sum[row] * factor + weigh_row(scale, maximum);
    return true;
}

}  // namespace
}  // namespace pagoda
