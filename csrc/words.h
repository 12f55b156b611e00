// How each number format's 32-bit words enter a product: fp32 holds one number a word, fp16 and bf16 two.
//
// A `Words` type says what it keeps of the left factor (`Factor`), how it loads a vector of right words, and how a word
// of the left factor times that vector is added to sums, `Total` being one of them. The numbers of a word follow each
// other along the summed axis. Words of bytes hold four codes, and sum exactly.
#pragma once

#include "numbers.h"
#include "vector.h"

namespace pagoda {
namespace {

// The lower or upper halves of words, read as fp16. Software: move exponent and mantissa into place, correct the
// exponent's bias by a product (which also makes subnormals right), restore infinity and NaN.
inline Floats floats_of_halves(Ints halves) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(halves)));
#elif defined(__AVX2__)
    const __m256i words = reinterpret_cast<__m256i>(halves);
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
    const Floats magnitude = reinterpret_cast<Floats>((halves & 0x7fff) << 13) * 0x1p112f;
    const Ints special = (halves & 0x7c00) == 0x7c00;
    const Ints sign = (halves & 0x8000) << 16;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (special & 0x7f800000) | sign);
#endif
}

struct Pair {
    Floats even;
    Floats odd;
};

inline void add_pair(Floats& sum, const float* left, const Pair& right) {
    sum += left[0] * right.even;
    sum += left[1] * right.odd;
}

struct Fp32Words {
    typedef float Factor;
    typedef float Total;
    typedef Floats Right;
    static constexpr int kNumbers = 1;
    static Right expand(Ints words) { return reinterpret_cast<Floats>(words); }
    static void add(Floats& sum, const Factor* left, const Right& right) { sum += left[0] * right; }
};

struct Fp16Words {
    typedef float Factor;
    typedef float Total;
    typedef Pair Right;
    static constexpr int kNumbers = 2;
    static Right expand(Ints words) {
        return {floats_of_halves(words & 0xffff), floats_of_halves(words >> 16 & 0xffff)};
    }
    static void add(Floats& sum, const Factor* left, const Right& right) { add_pair(sum, left, right); }
};

struct Bf16Words {
    typedef float Factor;
    typedef float Total;
    typedef Pair Right;
    static constexpr int kNumbers = 2;
    static Right expand(Ints words) {
        return {reinterpret_cast<Floats>(words << 16), reinterpret_cast<Floats>(words & int32_t(0xffff0000))};
    }
    static void add(Floats& sum, const Factor* left, const Right& right) { add_pair(sum, left, right); }
};

#if defined(__AVX512BF16__)

// Multiplies bf16 by bf16: the left factor is kept in bf16 too, so queries must be bf16 and weights are rounded.
struct Bf16DotWords {
    typedef Bf16 Factor;
    typedef float Total;
    typedef Ints Right;
    static constexpr int kNumbers = 2;
    static Right expand(Ints words) { return words; }
    static void add(Floats& sum, const Factor* left, const Right& right) {
        int32_t word;
        __builtin_memcpy(&word, left, 4);
        const __m512i words = _mm512_set1_epi32(word);
        sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(words), reinterpret_cast<__m512bh>(right));
    }
};

#endif

#if defined(__AVX512VNNI__)

inline Ints splat_word(const uint8_t* data) {
    int32_t word;
    __builtin_memcpy(&word, data, 4);
    return word - Ints{};
}

inline Ints add_bytes(Ints sum, Ints unsigned_bytes, Ints signed_bytes) {
    return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                      reinterpret_cast<__m512i>(unsigned_bytes),
                                                      reinterpret_cast<__m512i>(signed_bytes)));
}

// Signed by signed bytes. The instruction wants one factor unsigned, so codes are raised by kRaised.
struct SignedByteWords {
    typedef uint8_t Factor;
    typedef int32_t Total;
    typedef Ints Right;
    static constexpr int kNumbers = 4;
    static constexpr int kRaised = 128;
    static Right expand(Ints words) { return words ^ int32_t(0x80808080); }
    static void add(Ints& sum, const Factor* left, const Right& right) {
        sum = add_bytes(sum, right, splat_word(left));
    }
};

// Unsigned by signed bytes.
struct UnsignedByteWords {
    typedef uint8_t Factor;
    typedef int32_t Total;
    typedef Ints Right;
    static constexpr int kNumbers = 4;
    static Right expand(Ints words) { return words; }
    static void add(Ints& sum, const Factor* left, const Right& right) {
        sum = add_bytes(sum, splat_word(left), right);
    }
};

#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__)

// Signed bytes by integers of 16 bits. Of each four, the left factor keeps the first beside the third.
struct ShortWords {
    typedef int16_t Factor;
    typedef int32_t Total;
    struct Right {
        Ints outer;  // bytes 0 and 2, as halves
        Ints inner;  // bytes 1 and 3
    };
    static constexpr int kNumbers = 4;
    static Right expand(Ints words) {
        const Shorts halves = reinterpret_cast<Shorts>(words);
        return {reinterpret_cast<Ints>((halves << 8) >> 8), reinterpret_cast<Ints>(halves >> 8)};
    }
    static void add(Ints& sum, const Factor* left, const Right& right) {
        sum += multiply(right.outer, left) + multiply(right.inner, left + 2);
    }

  private:
    typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));

    static Ints multiply(Ints halves, const Factor* left) {
        int32_t word;
        __builtin_memcpy(&word, left, 4);
#if defined(__AVX512F__)
        return reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(halves), _mm512_set1_epi32(word)));
#else
        return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(halves), _mm256_set1_epi32(word)));
#endif
    }
};

#endif

// Factors of codes are integers of 16 bits: whole where halves are multiplied, or else in two parts of a byte.
#if defined(__AVX512VNNI__)

typedef uint8_t CodeFactor;
constexpr int kFactorParts = 2;

// A signed number; without `both` parts it is rounded to the high one. Returns what is kept.
inline int32_t keep_factor(CodeFactor* high, CodeFactor* low, int64_t index, int32_t number, bool both) {
    const int32_t rounded = (number + 128) >> 8, rest = number - rounded * 256;
    high[index] = uint8_t(rounded);
    if (both) low[index] = uint8_t(rest);
    return both ? number : number - rest;
}

// Unsigned numbers [index, index + kLanes).
inline void keep_factors(CodeFactor* high, CodeFactor* low, int64_t index, Floats numbers) {
    const __m512i words = _mm512_cvtps_epi32(numbers);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + index), _mm512_cvtepi32_epi8(words));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + index), _mm512_cvtepi32_epi8(_mm512_srli_epi32(words, 8)));
}

#elif defined(__AVX2__)

typedef int16_t CodeFactor;
constexpr int kFactorParts = 1;

inline int32_t keep_factor(CodeFactor* whole, CodeFactor*, int64_t index, int32_t number, bool) {
    whole[(index & ~int64_t(3)) | (index & 1) << 1 | (index >> 1 & 1)] = CodeFactor(number);
    return number;
}

inline void keep_factors(CodeFactor* whole, CodeFactor*, int64_t index, Floats numbers) {
    constexpr int kOuterInner = 0xd8;  // 0, 2, 1, 3
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(numbers));
    const __m256i ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(halves, kOuterInner), kOuterInner);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(whole + index), ordered);
#else
    const __m256i words = _mm256_cvtps_epi32(numbers);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i ordered = _mm_shufflehi_epi16(_mm_shufflelo_epi16(halves, kOuterInner), kOuterInner);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(whole + index), ordered);
#endif
}

#endif

}  // namespace
}  // namespace pagoda
