// How the queries of a tile meet the keys of a block: as numbers, or as bytes if keys are small integers.
//
// Both pack the queries once; then, for each block, read what must be decoded and score its panels for bands of rows. As
// bytes a query is an integer of 16 bits times a scale, in two parts that meet the codes apart: exact but for the
// rounding of the query to that scale, and nothing is decoded to floats.
#pragma once

#include "arithmetic.h"
#include "encoding.h"
#include "hadamard.h"
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

// Arithmetic with bf16 factors is chosen for bf16 queries only; keys that are rotated, or without constants, are met as
// bytes there.
inline void pack_query(const Work& work, int64_t row, Bf16* target) {
    __builtin_memcpy(target, query_data(work, row), size_t(work.call.pages.key.width) * sizeof(Bf16));
}

inline float float_of(float value) { return value; }
inline float float_of(Bf16 value) { return float_of_bf16(value); }

inline void read_levels(const PanelLevels& levels, int64_t first, int64_t tokens, const TokenLevels& target) {
    read_row(target.scales + first, levels.scales, Number::bf16, tokens);
    if (levels.minima) read_row(target.minima + first, levels.minima, Number::bf16, tokens);
}

inline CodedPanel coded_keys(const Pages& pages, const Block& block, int panel, const Ahead& ahead) {
    const int64_t rows = code_nbytes(pages.key.encoding, pages.key.width) / kWordCodes;
    return {block.key[panel], key_row_nbytes(pages), rows, panel_tokens(pages),
            ahead.of(panel, block.key_run[panel])};
}

// Codes of a byte or of four bits become bf16 words, rows of channels side by side; `bytes` has room for a panel.
inline void decode_keys(CodedPanel codes, Encoding encoding, uint8_t* bytes, uint8_t* target) {
    if (encoding == Encoding::int4) {
        unpack_keys(codes, bytes);
        codes = {bytes, codes.columns * 4, codes.rows * 2, codes.columns, bytes};
    }
    decode(encoding, codes, target);
}

template <class Arithmetic>
class NumberKeys {
  public:
    typedef typename Arithmetic::Factor Factor;

    static constexpr int64_t kBandRows = pagoda::kBandRows;

    NumberKeys(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic) {}

    // Minima of keys weigh the sum of what the products see.
    void pack_queries() {
        Factor* query = static_cast<Factor*>(work_.scratch.query);
        const int64_t width = pages().key.width;
        for (int64_t row = 0; row < work_.tile.num_rows; row++, query += query_stride(work_.call)) {
            pack_query(work_, row, query);
            float sum = 0.0f;
            for (int64_t channel = 0; channel < width && has_minima(pages().key.encoding); channel++)
                sum += float_of(query[channel]);
            work_.scratch.query_sums[row] = sum;
        }
    }

    void read(const Block& block, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages()), width = pages().key.width;
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = block.key[panel];
            if (!has_codes(pages().key)) continue;
            uint8_t* target = work_.scratch.keys + panel * tokens * width * 2;
            decode_keys(coded_keys(pages(), block, panel, ahead), pages().key.encoding, work_.scratch.bytes, target);
            panels_[panel] = target;
            read_levels(block.key_levels[panel], panel * tokens, tokens, work_.scratch.key_levels);
        }
    }

    void score(PanelRange panels, const Band& band, const Ahead& ahead) {
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
        if (has_codes(pages().key)) scale(panels.first * tokens, panels.last * tokens, band);
    }

  private:
    const Pages& pages() const { return work_.call.pages; }

    void scale(int64_t first, int64_t last, const Band& band) {
        const TokenLevels& levels = work_.scratch.key_levels;
        const bool minima = has_minima(pages().key.encoding);
        for (int64_t row = 0; row < band.count; row++) {
            float* scores = work_.scratch.scores + row * kScoreStride;
            const Floats sum = splat(work_.scratch.query_sums[band.first + row]);
            for (int64_t token = first; token < last; token += kLanes) {
                const Floats scaled = load(scores + token) * load(levels.scales + token);
                store(scores + token, minima ? scaled + sum * load(levels.minima + token) : scaled);
            }
        }
    }

    const Work& work_;
    Arithmetic& arithmetic_;
    const uint8_t* panels_[kMaxPanels];
};

#if defined(__AVX512BF16__)

// A number of 16 bits is 256 x high + low.
constexpr float kHighUnit = 256.0f;

// Rows whose largest number is smaller are zero as bytes.
constexpr float kSmallest = 1e-30f;

inline Floats joined(const int32_t* high, const int32_t* low) {
    return __builtin_convertvector(load(high), Floats) * kHighUnit + __builtin_convertvector(load(low), Floats);
}

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
inline int32_t nearest(float value) {
    constexpr float kMagic = 12582912.0f;
    return int32_t(bits_of_float(value + kMagic) - bits_of_float(kMagic));
}

template <class Arithmetic>
class ByteKeys {
  public:
    // Two parts each.
    static constexpr int64_t kBandRows = pagoda::kBandRows / 2;

    ByteKeys(const Work& work, Arithmetic& arithmetic) : work_(work), arithmetic_(arithmetic) {}

    void pack_queries() {
        for (int64_t row = 0; row < work_.tile.num_rows; row++) {
            read_query(work_, row, work_.scratch.row);
            const int64_t first = row / kBandRows * kBandRows, rows = work_.tile.num_rows - first;
            uint8_t* high = band_queries(first) + (row - first) * stride();
            pack_row(work_.scratch.row, row, high, high + (rows < kBandRows ? rows : kBandRows) * stride());
        }
    }

    void read(const Block& block, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        for (int panel = block.first_panel; panel < block.last_panel; panel++) {
            panels_[panel] = block.key[panel];
            read_levels(block.key_levels[panel], panel * tokens, tokens, work_.scratch.key_levels);
            if (!is_packed()) continue;
            uint8_t* target = work_.scratch.keys + panel * tokens * pages().key.width;
            unpack_keys(coded_keys(pages(), block, panel, ahead), target);
            panels_[panel] = target;
        }
    }

    void score(PanelRange panels, const Band& band, const Ahead& ahead) {
        const int64_t tokens = panel_tokens(pages());
        const LeftBytes queries{band_queries(band.first), stride(), int(2 * band.count)};
        for (int panel = panels.first; panel < panels.last; panel++) {
            const uint8_t* next = band.first == 0 && !is_packed() ? ahead.of(panel, panels_[panel]) : panels_[panel];
            const int64_t row_nbytes = is_packed() ? tokens * 4 : key_row_nbytes(pages());
            const Panels keys{panels_ + panel, &next, 1, pages().key.width / kWordCodes, row_nbytes, tokens};
            const IntegerSums sums{work_.scratch.parts + panel * tokens, work_.scratch.parts_stride, false};
            arithmetic_.byte_scores(queries, keys, sums);
        }
        scale(panels.first * tokens, panels.last * tokens, band);
    }

  private:
    static constexpr float kLargest = 127 * kHighUnit + 127;

    const Pages& pages() const { return work_.call.pages; }
    bool is_packed() const { return pages().key.encoding == Encoding::int4; }
    int64_t stride() const { return rounded_up(pages().key.width, 64); }

    // High parts of all rows of the band, then low parts.
    uint8_t* band_queries(int64_t first_row) const {
        return static_cast<uint8_t*>(work_.scratch.query) + 2 * first_row * stride();
    }

    void pack_row(const float* numbers, int64_t row, uint8_t* high, uint8_t* low) {
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
            const int32_t rounded = (number + 128) >> 8;
            high[channel] = uint8_t(rounded);
            low[channel] = uint8_t(number - rounded * 256);
            sum += number;
        }
        work_.scratch.query_scales[row] = all_finite ? largest / kLargest : __builtin_nanf("");
        work_.scratch.query_sums[row] = float(sum);
    }

    void scale(int64_t first, int64_t last, const Band& band) {
        const TokenLevels& levels = work_.scratch.key_levels;
        const bool minima = has_minima(pages().key.encoding);
        const int64_t stride = work_.scratch.parts_stride;
        for (int64_t row = 0; row < band.count; row++) {
            const int32_t* high = work_.scratch.parts + row * stride;
            const int32_t* low = high + band.count * stride;
            float* scores = work_.scratch.scores + row * kScoreStride;
            const Floats unit = splat(work_.scratch.query_scales[band.first + row]);
            const Floats sum = splat(work_.scratch.query_sums[band.first + row]);
            const Floats raised = sum * Arithmetic::kRaisedKeys;
            for (int64_t token = first; token < last; token += kLanes) {
                const Floats codes = joined(high + token, low + token) - raised;
                const Floats scaled = codes * load(levels.scales + token);
                store(scores + token, (minima ? scaled + sum * load(levels.minima + token) : scaled) * unit);
            }
        }
    }

    const Work& work_;
    Arithmetic& arithmetic_;
    const uint8_t* panels_[kMaxPanels];
};

#endif

}  // namespace
}  // namespace pagoda
