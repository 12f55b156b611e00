// 2^x and tanh on vectors.
//
// `exp2` is good to 2 units in the last place; `exp2_coarse` to 1e-4, for weights that are rounded to bf16 (2e-3)
// anyway. Both give 0 for minus infinity and NaN for NaN. Polynomials are minimax fits of relative error, exact at x =
// 0.
#pragma once

#include "vector.h"

namespace pagoda {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

// 2^fraction for |fraction| <= 1/2.
inline Floats exp2_fraction(Floats fraction) {
    Floats result = splat(0.00015353361959569156f);
    result = result * fraction + 0.0013398873852565885f;
    result = result * fraction + 0.00961843691766262f;
    result = result * fraction + 0.055503323674201965f;
    result = result * fraction + 0.24022647738456726f;
    result = result * fraction + 0.6931471824645996f;
    return result * fraction + 1.0f;
}

#if defined(__AVX512F__)

inline Floats exp2(Floats x) {
    const Floats whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // The subtraction of two infinities would be NaN; the reduction of one is zero.
    const Floats fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(exp2_fraction(fraction), whole);
}

// The scaling instruction rounds its exponent down, so the fraction is taken in [0, 1) and `whole` is never made.
inline Floats exp2_coarse(Floats x) {
    const Floats fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Floats result = splat(0.07706703990697861f);
    result = result * fraction + 0.22764499485492706f;
    result = result * fraction + 0.6951167583465576f;
    result = result * fraction + 1.0f;
    return _mm512_scalef_ps(result, x);
}

#else

inline Floats exp2(Floats x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum. Arguments are at most 0 here.
    const Floats magic = splat(12582912.0f);
    const Floats bounded = x < -126.0f ? splat(-126.0f) : x;
    const Floats shifted = bounded + magic;
    const Floats power = reinterpret_cast<Floats>((reinterpret_cast<Ints>(shifted) << 23) + 0x3f800000);
    const Floats result = exp2_fraction(bounded - (shifted - magic)) * power;
    return x < -126.0f ? Floats{} : result;
}

inline Floats exp2_coarse(Floats x) { return exp2(x); }

#endif

// Small arguments take the odd polynomial of Cephes: 1 - 2 / (1 + e^2x) would cancel there.
inline Floats tanh(Floats x) {
    const Floats square = x * x;
    Floats small = splat(-5.70498872745e-3f);
    small = small * square + 2.06390887954e-2f;
    small = small * square - 5.37397155531e-2f;
    small = small * square + 1.33314422036e-1f;
    small = small * square - 3.33332819422e-1f;
    small = small * square * x + x;
    const Floats magnitude = x < 0.0f ? -x : x;
    const Floats decay = exp2(magnitude * (-2.0f * kLog2E));
    const Floats large = (1.0f - decay) / (1.0f + decay);
    return magnitude < 0.625f ? small : (x < 0.0f ? -large : large);
}

}  // namespace
}  // namespace pagoda
