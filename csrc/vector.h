// Vectors of floats as wide as the instruction set, on the compiler's vector types.
//
// Included only by kernels.cpp, once per instruction set, and so all in an unnamed namespace. Intrinsics stand where
// the plain expression was measured or known to compile badly: half conversion, masks, maxima.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pagoda {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Word __attribute__((may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

constexpr float kNegativeInfinity = -__builtin_inff();

inline Floats load(const float* data) { return *reinterpret_cast<const UnalignedFloats*>(data); }
inline Ints load(const int32_t* data) { return *reinterpret_cast<const UnalignedInts*>(data); }
inline void store(float* data, Floats values) { *reinterpret_cast<UnalignedFloats*>(data) = values; }
inline void store(int32_t* data, Ints values) { *reinterpret_cast<UnalignedInts*>(data) = values; }
inline Floats splat(float value) { return value - Floats{}; }

// 0, 1, 2, ...
inline Floats lane_numbers() {
    Floats numbers;
    for (int lane = 0; lane < kLanes; lane++) numbers[lane] = float(lane);
    return numbers;
}

inline Ints load_words(const uint8_t* data) { return *reinterpret_cast<const UnalignedInts*>(data); }

// Words past `count` are zero and not touched in memory: they may lie behind the last page.
inline Ints load_words(const uint8_t* data, int count) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), data));
#else
    Ints words{};
    for (int lane = 0; lane < count; lane++) words[lane] = reinterpret_cast<const Word*>(data)[lane];
    return words;
#endif
}

inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

inline float horizontal_maximum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(values);
#else
    float result = values[0];
    for (int lane = 1; lane < kLanes; lane++) result = values[lane] > result ? values[lane] : result;
    return result;
#endif
}

inline float horizontal_sum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(values);
#else
    float result = values[0];
    for (int lane = 1; lane < kLanes; lane++) result += values[lane];
    return result;
#endif
}

}  // namespace
}  // namespace pagoda
