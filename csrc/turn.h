// Turns a panel of keys into a panel of values, for latents, which are both.
//
// Knows the word orders of `formats/words.py`: a row of key words is a channel, or two, of all tokens; a row of value
// words is a token, or two, of all channels.
#pragma once

#include "block.h"
#if defined(__AVX512F__)
#include "transpose.h"
#endif

namespace pagoda {
namespace {

// Key words at `data`, rows at a distance of `row_nbytes`; of the panel's tokens [first, last) count, and are read.
struct KeyPanel {
    const uint8_t* data;
    int64_t row_nbytes;
    int64_t tokens;
    int64_t first;
    int64_t last;
};

inline uint32_t key_word(const KeyPanel& keys, int64_t row, int64_t token) {
    uint32_t word;
    __builtin_memcpy(&word, keys.data + row * keys.row_nbytes + token * 4, 4);
    return token >= keys.first && token < keys.last ? word : 0;
}

// A number a word.
inline void turn_words(const KeyPanel& keys, int64_t width, uint8_t* target) {
    for (int64_t token = 0; token < keys.tokens; token++)
        for (int64_t channel = 0; channel < width; channel++) {
            const uint32_t word = key_word(keys, channel, token);
            __builtin_memcpy(target + (token * width + channel) * 4, &word, 4);
        }
}

// Two numbers a word, channels [first_channel, width), of which the first is even.
inline void turn_halves(const KeyPanel& keys, int64_t first_channel, int64_t width, uint8_t* target) {
    for (int64_t token = 0; token < keys.tokens; token += 2)
        for (int64_t channel = first_channel; channel < width; channel++) {
            const int shift = channel % 2 ? 16 : 0;
            const uint32_t low = key_word(keys, channel / 2, token) >> shift & 0xffff;
            const uint32_t high = key_word(keys, channel / 2, token + 1) >> shift & 0xffff;
            const uint32_t word = low | high << 16;
            __builtin_memcpy(target + (token / 2 * width + channel) * 4, &word, 4);
        }
}

#if defined(__AVX512F__)

// 32 channels of 16 tokens, all of which count: squares of words, whose halves then change places between two tokens.
inline void turn_square(const KeyPanel& keys, int64_t first_channel, int64_t first_token, int64_t width,
                        uint8_t* target) {
    const __m512i first_half = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second_half = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    Words16 words;
    for (int row = 0; row < 16; row++)
        words.row[row] = load_words(keys.data + (first_channel / 2 + row) * keys.row_nbytes + first_token * 4);
    transpose(words);
    for (int token = 0; token < 16; token += 2) {
        const Ints one = words.row[token], other = words.row[token + 1];
        const __m512i even = reinterpret_cast<__m512i>((one & 0xffff) | other << 16);
        const __m512i odd = reinterpret_cast<__m512i>((one >> 16 & 0xffff) | (other & int32_t(0xffff0000)));
        uint8_t* row = target + ((first_token + token) / 2 * width + first_channel) * 4;
        _mm512_storeu_si512(row, _mm512_permutex2var_epi32(even, first_half, odd));
        _mm512_storeu_si512(row + 64, _mm512_permutex2var_epi32(even, second_half, odd));
    }
}

#endif

inline void turn_panel(const KeyPanel& keys, Number number, int64_t width, uint8_t* target) {
    if (number == Number::fp32) return turn_words(keys, width, target);
    int64_t channel = 0;
#if defined(__AVX512F__)
    const bool all_count = keys.first == 0 && keys.last == keys.tokens;
    for (; all_count && channel + 32 <= width; channel += 32)
        for (int64_t token = 0; token < keys.tokens; token += 16) turn_square(keys, channel, token, width, target);
#endif
    turn_halves(keys, channel, width, target);
}

}  // namespace
}  // namespace pagoda
