// The orthonormal Hadamard transform of a row, in place, as `formats/rotated.py` defines it, bit for bit.
//
// Functions are static for the reason in attention.h.
#pragma once

#include "attention.h"

namespace pagoda {

// Runs of so many neighbours: sums and differences at distances of 1, 2, 4 and so on.
static inline void hadamard_run(float* numbers, int64_t channels) {
    for (int64_t distance = 1; distance < channels; distance *= 2) {
        for (int64_t pair = 0; pair < channels; pair += 2 * distance) {
            for (int64_t i = pair; i < pair + distance; i++) {
                const float first = numbers[i], second = numbers[i + distance];
                numbers[i] = first + second;
                numbers[i + distance] = first - second;
            }
        }
    }
    const float factor = float(1.0 / __builtin_sqrt(double(channels)));
    for (int64_t i = 0; i < channels; i++) numbers[i] *= factor;
}

static inline void hadamard(float* row, const Plane& plane) {
    if (plane.rotated_channels == 1) return;
    for (int64_t first = 0; first < plane.width; first += plane.rotated_channels)
        hadamard_run(row + first, plane.rotated_channels);
}

}  // namespace pagoda
