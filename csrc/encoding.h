// How the codes of `formats/scaled.py` and `formats/int4.py` become bytes or bf16 words in the order of
// `formats/words.py`.
//
// Knows codes, a panel of 16 or 32 tokens at a time; does not know pages or scales, which the scores and weights of the
// tokens take in. Codes are exact in bf16.
#pragma once

#include "product.h"

namespace pagoda {
namespace {

// Every code becomes a finite number: what lies behind the end of a sequence is multiplied by zero.
template <int kShift>
inline Floats floats_of_fp8(Ints codes, float unit) {
    const Floats magnitude = reinterpret_cast<Floats>((codes & 0x7f) << kShift) * unit;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (codes & 0x80) << 24);
}

// Codes in the low halves of words, two each.
template <Encoding kEncoding>
inline Pair floats_of_codes(Ints pairs) {
    if constexpr (kEncoding == Encoding::e4m3)
        return {floats_of_fp8<20>(pairs & 0xff, 0x1p120f), floats_of_fp8<20>(pairs >> 8, 0x1p120f)};
    else if constexpr (kEncoding == Encoding::e5m2)
        return {floats_of_fp8<21>(pairs & 0xff, 0x1p112f), floats_of_fp8<21>(pairs >> 8, 0x1p112f)};
    else
        return {__builtin_convertvector(pairs << 24 >> 24, Floats), __builtin_convertvector(pairs << 16 >> 24, Floats)};
}

inline void store_words(uint8_t* target, Ints words) { *reinterpret_cast<UnalignedInts*>(target) = words; }

template <Encoding kEncoding>
inline void store_pairs(uint8_t* target, Ints pairs) {
    const Pair pair = floats_of_codes<kEncoding>(pairs);
    const Ints even = reinterpret_cast<Ints>(pair.even), odd = reinterpret_cast<Ints>(pair.odd);
    store_words(target, (even >> 16 & 0xffff) | (odd & int32_t(0xffff0000)));
}

// Where a panel of codes lies: words of four in rows at a distance of `row_nbytes`, and as many bytes to ask for
// meanwhile.
struct CodedPanel {
    const uint8_t* codes;
    int64_t row_nbytes;
    int64_t rows;
    int64_t columns;
    const uint8_t* ahead;
};

inline void prefetch_row(const CodedPanel& panel, int64_t row) {
    const uint8_t* ahead = panel.ahead + row * panel.columns * 4;
    for (int64_t offset = 0; offset < panel.columns * 4; offset += kLineNbytes) prefetch_first(ahead + offset);
}

// A row of codes becomes two rows of words. Like all below, reads and writes up to a whole vector behind the last row:
// codes are followed by scales.
template <Encoding kEncoding>
void decode_panel(const CodedPanel& panel, uint8_t* target) {
    const int64_t target_nbytes = panel.columns * 4;
    for (int64_t row = 0; row < panel.rows; row++, target += 2 * target_nbytes) {
        prefetch_row(panel, row);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        for (int64_t offset = 0; offset < target_nbytes; offset += kLanes * 4)
            store_pairs<kEncoding>(target + offset, load_words(codes + offset) & 0xffff);
        for (int64_t offset = 0; offset < target_nbytes; offset += kLanes * 4)
            store_pairs<kEncoding>(target + target_nbytes + offset, load_words(codes + offset) >> 16 & 0xffff);
    }
}

// The steps and zeros of a panel's tokens: a byte a token, groups at a distance of `stride_nbytes`.
struct PanelGroups {
    const uint8_t* levels;
    int64_t stride_nbytes;
    int64_t count;
    int64_t channels;

    // How many are cut from a half of a row; one that is all of it counts for both.
    int64_t of_half() const { return count > 1 ? count / 2 : 1; }
    const uint8_t* low(int64_t group) const { return levels + group * stride_nbytes; }
    const uint8_t* high(int64_t group) const { return count > 1 ? low(group + count / 2) : levels; }
};

typedef uint16_t Halves __attribute__((vector_size(kLanes * 4)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes * 4)));

// Products of halves of words. Two bytes of codes are multiplied at once: a code times a step is a byte.
inline Ints multiply_halves(Ints left, Ints right) {
    return reinterpret_cast<Ints>(reinterpret_cast<Halves>(left) * reinterpret_cast<Halves>(right));
}

inline Ints subtract_bytes(Ints left, Ints right) {
    return reinterpret_cast<Ints>(reinterpret_cast<Bytes>(left) - reinterpret_cast<Bytes>(right));
}

// As many bytes as a vector has lanes.
inline Ints load_bytes(const uint8_t* data) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data))));
#elif defined(__AVX2__)
    return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data))));
#else
    Ints bytes;
    for (int lane = 0; lane < kLanes; lane++) bytes[lane] = data[lane];
    return bytes;
#endif
}

// number = step x code - offset, of the channels of a group, where a word has four channels of one token: the step in
// each half, the offset in each byte.
struct TokenSteps {
    Ints step;
    Ints offset;

    explicit TokenSteps(const uint8_t* levels) {
        const Ints bytes = load_bytes(levels) * 0x01010101;
        step = (bytes & 0x000f000f) + 0x00010001;
        offset = multiply_halves(bytes >> 4 & 0x0f0f0f0f, step);
    }

    Ints numbers(Ints codes) const { return subtract_bytes(multiply_halves(codes, step), offset); }
};

// Channels of a group, unless it is a whole half of a row. Loops of that many steps are unrolled.
constexpr int64_t kKeyGroupChannels = 16;
constexpr int64_t kValueGroupChannels = 32;

// Bytes of two codes become bytes of one number each. Rows of channels: the high bits' are half a head behind the low
// bits'. Like `unpack_values`, out of line: callers leave it too few registers.
__attribute__((noinline)) void unpack_keys(const CodedPanel& panel, const PanelGroups& groups, uint8_t* target) {
    constexpr int64_t kGroupRows = kKeyGroupChannels / kWordCodes;
    const int64_t row_nbytes = panel.columns * 4, group_rows = groups.channels / kWordCodes;
    for (int64_t row = 0; row < panel.rows; row++) prefetch_row(panel, row);
    for (int64_t group = 0; group < groups.of_half(); group++) {
        const int64_t first = group * group_rows;
        const int64_t last = first + group_rows < panel.rows ? first + group_rows : panel.rows;
        for (int64_t column = 0; column < panel.columns; column += kLanes) {
            const TokenSteps low(groups.low(group) + column), high(groups.high(group) + column);
            const auto unpack = [&](int64_t row) {
                const Ints codes = load_words(panel.codes + row * panel.row_nbytes + column * 4);
                uint8_t* numbers = target + row * row_nbytes + column * 4;
                store_words(numbers, low.numbers(codes & 0x0f0f0f0f));
                store_words(numbers + panel.rows * row_nbytes, high.numbers(codes >> 4 & 0x0f0f0f0f));
            };
            if (last - first == kGroupRows)
                for (int64_t row = 0; row < kGroupRows; row++) unpack(first + row);
            else
                for (int64_t row = first; row < last; row++) unpack(row);
        }
    }
}

// The same where a word has four tokens of one channel: the steps of the first and third token are in the even halves,
// those of the second and fourth in the odd ones. All are found for a panel at once, in three parts for each group.
constexpr int64_t kPartWords = 16;

inline int64_t steps_words(int64_t num_groups) { return 3 * kPartWords * num_groups; }

inline void find_steps(const PanelGroups& groups, int64_t rows, int32_t* steps) {
    for (int64_t group = 0; group < groups.count; group++, steps += 3 * kPartWords)
        for (int64_t row = 0; row < rows; row += kLanes) {
            const int count = int(rows - row < kLanes ? rows - row : kLanes);
            const Ints levels = load_words(groups.low(group) + row * kWordCodes, count);
            const Ints step = (levels & 0x0f0f0f0f) + 0x01010101, zero = levels >> 4 & 0x0f0f0f0f;
            const Ints even = step & 0x00ff00ff, odd = step >> 8 & 0x00ff00ff;
            store(steps + row, even);
            store(steps + kPartWords + row, odd);
            store(steps + 2 * kPartWords + row,
                  multiply_halves(even, zero & 0x00ff00ff) | multiply_halves(odd, zero >> 8 & 0x00ff00ff) << 8);
        }
}

// The steps of a group for the tokens of a row, splat.
template <bool kHasSteps>
struct ChannelSteps {
    Ints even;
    Ints odd;
    Ints offset;

    explicit ChannelSteps(const int32_t* steps)
        : even(Ints{} + steps[0]), odd(Ints{} + steps[kPartWords]), offset(Ints{} + steps[2 * kPartWords]) {}

    Ints numbers(Ints codes) const {
        if constexpr (!kHasSteps) return subtract_bytes(codes & 0x0f0f0f0f, offset);
        const Ints first = multiply_halves(codes & 0x000f000f, even), second = multiply_halves(codes & 0x0f000f00, odd);
        return subtract_bytes(first | second, offset);
    }
};

// Rows of tokens, whose channels of the high bits are the second half. A last group ends in the room of what comes
// behind it, so each row is written backwards. A single group has steps of one. Reads go up to a whole vector behind a
// row: scales and levels follow, of at least 16 tokens.
template <bool kHasSteps>
inline void unpack_rows(const CodedPanel& panel, const PanelGroups& groups, const int32_t* steps, uint8_t* target) {
    typedef ChannelSteps<kHasSteps> Steps;
    const int64_t row_nbytes = panel.columns * 4, last_group = groups.of_half() - 1;
    const int64_t to_high = groups.count > 1 ? steps_words(groups.of_half()) : 0;
    for (int64_t row = 0; row < panel.rows; row++, target += 2 * row_nbytes) {
        prefetch_row(panel, row);
        const uint8_t* codes = panel.codes + row * panel.row_nbytes;
        int64_t end = panel.columns;
        for (int64_t group = last_group; group >= 0; group--) {
            const int32_t* of_group = steps + steps_words(group) + row;
            const Steps low(of_group), high(of_group + to_high);
            const int64_t begin = group * groups.channels;
            const auto unpack = [&](int64_t channel) {
                const Ints both = load_words(codes + channel * 4);
                store_words(target + channel * 4, low.numbers(both));
                store_words(target + row_nbytes + channel * 4, high.numbers(both >> 4));
            };
            if (end - begin == kValueGroupChannels)
                for (int64_t i = kValueGroupChannels - kLanes; i >= 0; i -= kLanes) unpack(begin + i);
            else
                for (int64_t channel = begin + (end - begin - 1) / kLanes * kLanes; channel >= begin; channel -= kLanes)
                    unpack(channel);
            end = begin;
        }
    }
}

// `steps` has room for those of all groups.
__attribute__((noinline)) void unpack_values(const CodedPanel& panel, const PanelGroups& groups, int32_t* steps,
                                             uint8_t* target) {
    find_steps(groups, panel.rows, steps);
    if (groups.count > 1)
        unpack_rows<true>(panel, groups, steps, target);
    else
        unpack_rows<false>(panel, groups, steps, target);
}

inline void decode(Encoding encoding, const CodedPanel& panel, uint8_t* target) {
    switch (encoding) {
        case Encoding::none: break;
        case Encoding::int8:
        case Encoding::int4: return decode_panel<Encoding::int8>(panel, target);
        case Encoding::e4m3: return decode_panel<Encoding::e4m3>(panel, target);
        case Encoding::e5m2: return decode_panel<Encoding::e5m2>(panel, target);
    }
}

}  // namespace
}  // namespace pagoda
