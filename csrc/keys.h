// How the queries of a tile meet the keys of a block: as numbers, or as bytes if keys are small integers.
//
// Both pack the queries once; then, for each block, read what must be decoded and score its panels for bands of rows. For
// bytes a query is an integer of 16 bits times a scale, whole or in two parts that meet the codes apart: exact but for
// the rounding of the query to that scale, and nothing is decoded to floats. Of two parts, keys of four bits meet the
// high one alone: a step of the query is a 255th of its range then, one of the keys about a 15th of theirs.
#pragma once

#include "arithmetic.h"
#include "encoding.h"
#include "hadamard.h"
#include "lifts.h"

namespace pagoda {
namespace {

// Keys are kept divided by the scales of their channels, so queries are multiplied by them.
inline void read_query(const Work& work, int64_t row, float* target) {
    const Pages& pages = work.call.pages;
    read_row(target, query_data(work, row), work.call.query.number, pages.key.width);
    if (pages.constants.scales) {
        const float* scales = pages.constants.scales + work.tile.kv_head * pages.key.width;
        for (int64_t channel = 0; channel < pages.key.width; channel++) target[channel] *= scales[channel];
    }
    hadamard(target, pages.key);
}

inline void pack_query(const Work& work, int64_t row, float* target) { read_query(work, row, target); }

// Arithmetic with bf16 factors is chosen for bf16 queries only. Products with scales, which are powers of two, are exact;
// keys that are rotated are met as bytes there.
inline void pack_query(const Work& work, int64_t row, Bf16* target) {
    const int64_t width = work.call.pages.key.width;
    if (!work.call.pages.constants.scales) {
        __builtin_memcpy(target, query_data(work, row), size_t(width) * sizeof(Bf16));
        return;
    }
    read_query(work, row, work.scratch.row);
    write_row(reinterpret_cast<uint8_t*>(target), Number::bf16, work.scratch.row, width);
}

inline CodedPanel coded_keys(const Pages& pages, const Block& block, int panel, const Ahead& ahead) {
    const int64_t rows = code_nbytes(pages.key.encoding, pages.key.width) / kWordCodes;
    return {block.key[panel], key_row_nbytes(pages), rows, panel_tokens(pages),
            ahead.of(panel, block.key_run[panel])};
}

inline PanelGroups groups_of(const Pages& pages, const Plane& plane, const PanelLevels& levels) {
    return {levels.groups, pages.page_tokens, num_groups(plane), plane.group_channels};
}

// Codes of a byte or of four bits become bf16 words, rows of channels side by side; `bytes` has room for a panel.
inline void decode_keys(const Pages& pages, const Block& block, int panel, const Ahead& ahead, uint8_t* bytes,
                        uint8_t* target) {
    CodedPanel codes = coded_keys(pages, block, panel, ahead);
    if (pages.key.encoding == Encoding::int4) {
        unpack_keys(codes, groups_of(pages, pages.key, block.key_levels[panel]), bytes);
        codes = {bytes, codes.columns * 4, codes.rows * 2, codes.columns, bytes};
    }
    decode(pages.key.encoding, codes, target);
}

template <class Arithmetic>
class NumberKeys {
  public:
    typedef typename Arithmetic::Factor Factor;

    static constexpr int64_t kBandRows = pagoda::kBandRows;

    NumberKeys(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic), lifts_(work) {}

    void pack_queries() {
        lifts_.pack_queries();
        Factor* query = static_cast<Factor*>(work_.scratch.query);
        for (int64_t row = 0; row < work_.tile.num_rows; row++, query += query_stride(work_.call))
            pack_query(work_, row, query);
    }

    void read(const Block& block, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages()), width = pages().key.width;
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = block.key[panel];
            if (!has_codes(pages().key)) continue;
            uint8_t* target = work_.scratch.keys + panel * tokens * width * 2;
            decode_keys(pages(), block, panel, ahead, work_.scratch.bytes, target);
            panels_[panel] = target;
            read_row(work_.scratch.key_scales + panel * tokens, block.key_levels[panel].scales, Number::bf16, tokens);
        }
    }

    void score(const Block& block, PanelRange panels, const Band& band, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        const bool is_read_here = band.first == 0 && !has_codes(pages().key);
        const Left<Factor> queries{
            static_cast<const Factor*>(work_.scratch.query) + band.first * query_stride(work_.call),
            query_stride(work_.call), int(band.count)};
        for (int panel = panels.first; panel < panels.last; panel++) {
            const uint8_t* next = is_read_here ? ahead.of(panel, panels_[panel]) : panels_[panel];
            const int64_t row_nbytes = has_codes(pages().key) ? tokens * 4 : key_row_nbytes(pages());
            const Panels keys{panels_ + panel, &next, 1, pages().key.width / word_numbers(pages()), row_nbytes, tokens};
            arithmetic_.scores(queries, keys, {work_.scratch.scores + panel * tokens, kScoreStride, false});
        }
        if (has_codes(pages().key)) scale(block, panels, band);
    }

  private:
    const Pages& pages() const { return work_.call.pages; }

    void scale(const Block& block, PanelRange panels, const Band& band) {
        const int64_t tokens = panel_tokens(pages());
        float lifts[kMaxPanels]{};
        lifts_.locate(block, panels);
        for (int64_t row = 0; row < band.count; row++) {
            lifts_.find(band.first + row, lifts);
            float* scores = work_.scratch.scores + row * kScoreStride;
            for (int panel = panels.first; panel < panels.last; panel++)
                for (int64_t token = panel * tokens; token < (panel + 1) * tokens; token += kLanes)
                    store(scores + token,
                          load(scores + token) * load(work_.scratch.key_scales + token) + lifts[panel]);
        }
    }

    const Work& work_;
    Arithmetic& arithmetic_;
    Lifts lifts_;
    const uint8_t* panels_[kMaxPanels];
};

#if defined(__AVX2__)

// Where bytes are multiplied by bytes, a number of 16 bits is 256 x high + low.
constexpr float kHighUnit = 256.0f;

// Rows whose largest number is smaller are zero as bytes.
constexpr float kSmallest = 1e-30f;

inline Floats widened(const int32_t* high) { return __builtin_convertvector(load(high), Floats) * kHighUnit; }

// Of all parts of a factor.
inline Floats joined(const int32_t* high, const int32_t* low) {
    if (kFactorParts == 1) return __builtin_convertvector(load(high), Floats);
    return widened(high) + __builtin_convertvector(load(low), Floats);
}

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
inline int32_t nearest(float value) {
    constexpr float kMagic = 12582912.0f;
    return int32_t(bits_of_float(value + kMagic) - bits_of_float(kMagic));
}

template <class Arithmetic>
class ByteKeys {
  public:
    // Up to two parts each, of a byte, or one of two bytes.
    static constexpr int64_t kBandRows = pagoda::kBandRows / 2;

    ByteKeys(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic), lifts_(work) {}

    void pack_queries() {
        lifts_.pack_queries();
        for (int64_t row = 0; row < work_.tile.num_rows; row++) {
            read_query(work_, row, work_.scratch.row);
            const int64_t first = row / kBandRows * kBandRows, rows = work_.tile.num_rows - first;
            CodeFactor* high = band_queries(first) + (row - first) * stride();
            pack_row(work_.scratch.row, row, high, high + (rows < kBandRows ? rows : kBandRows) * stride());
        }
    }

    void read(const Block& block, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = block.key[panel];
            read_row(work_.scratch.key_scales + panel * tokens, block.key_levels[panel].scales, Number::bf16, tokens);
            if (!is_packed()) continue;
            uint8_t* target = work_.scratch.keys + panel * tokens * pages().key.width;
            unpack_keys(coded_keys(pages(), block, panel, ahead),
                        groups_of(pages(), pages().key, block.key_levels[panel]), target);
            panels_[panel] = target;
        }
    }

    void score(const Block& block, PanelRange panels, const Band& band, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        const Left<CodeFactor> queries{band_queries(band.first), stride(), int(num_parts() * band.count)};
        for (int panel = panels.first; panel < panels.last; panel++) {
            const uint8_t* next = band.first == 0 && !is_packed() ? ahead.of(panel, panels_[panel]) : panels_[panel];
            const int64_t row_nbytes = is_packed() ? tokens * 4 : key_row_nbytes(pages());
            const Panels keys{panels_ + panel, &next, 1, pages().key.width / kWordCodes, row_nbytes, tokens};
            const IntegerSums sums{work_.scratch.parts + panel * tokens, work_.scratch.parts_stride, false};
            arithmetic_.byte_scores(queries, keys, sums);
        }
        scale(block, panels, band);
    }

  private:
    static constexpr float kLargest = kFactorParts == 1 ? 32767 : 127 * kHighUnit + 127;

    const Pages& pages() const { return work_.call.pages; }
    bool is_packed() const { return pages().key.encoding == Encoding::int4; }
    int num_parts() const { return is_packed() ? 1 : kFactorParts; }
    int64_t stride() const { return rounded_up(pages().key.width, 64); }

    // High parts of all rows of the band, then low parts.
    CodeFactor* band_queries(int64_t first_row) const {
        return static_cast<CodeFactor*>(work_.scratch.query) + kFactorParts * first_row * stride();
    }

    void pack_row(const float* numbers, int64_t row, CodeFactor* high, CodeFactor* low) {
        float largest = 0.0f;
        bool all_finite = true;
        for (int64_t channel = 0; channel < pages().key.width; channel++) {
            const float magnitude = numbers[channel] < 0.0f ? -numbers[channel] : numbers[channel];
            all_finite &= is_finite(numbers[channel]);
            largest = magnitude > largest ? magnitude : largest;
        }
        const bool is_usable = all_finite && largest > kSmallest;
        const float inverse = is_usable ? kLargest / largest : 0.0f;
        int32_t sum = 0;
        for (int64_t channel = 0; channel < pages().key.width; channel++) {
            const int32_t number = is_usable ? nearest(numbers[channel] * inverse) : 0;
            sum += keep_factor(high, low, channel, number, num_parts() > 1);
        }
        work_.scratch.query_scales[row] = all_finite ? largest / kLargest : __builtin_nanf("");
        work_.scratch.query_sums[row] = float(sum);
    }

    void scale(const Block& block, PanelRange panels, const Band& band) {
        const int64_t tokens = panel_tokens(pages()), stride = work_.scratch.parts_stride;
        float lifts[kMaxPanels]{};
        lifts_.locate(block, panels);
        for (int64_t row = 0; row < band.count; row++) {
            lifts_.find(band.first + row, lifts);
            const int32_t* high = work_.scratch.parts + row * stride;
            const int32_t* low = high + band.count * stride;
            float* scores = work_.scratch.scores + row * kScoreStride;
            const Floats unit = splat(work_.scratch.query_scales[band.first + row]);
            const Floats raised = splat(work_.scratch.query_sums[band.first + row] * Arithmetic::kRaisedKeys);
            for (int panel = panels.first; panel < panels.last; panel++)
                for (int64_t token = panel * tokens; token < (panel + 1) * tokens; token += kLanes) {
                    const Floats codes = num_parts() == kFactorParts ? joined(high + token, low + token)
                                                                     : widened(high + token);
                    const Floats scales = load(work_.scratch.key_scales + token) * unit;
                    store(scores + token, (codes - raised) * scales + lifts[panel]);
                }
        }
    }

    const Work& work_;
    Arithmetic& arithmetic_;
    Lifts lifts_;
    const uint8_t* panels_[kMaxPanels];
};

#endif

}  // namespace
}  // namespace pagoda
