// Asks for lines of memory before they are read.
//
// Included once per instruction set, as vector.h.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

constexpr int64_t kLineNbytes = 64;

inline void prefetch(const uint8_t* data) {
    constexpr int kRead = 0, kSecondCache = 2;
    __builtin_prefetch(data, kRead, kSecondCache);
}

inline void prefetch_first(const uint8_t* data) {
    constexpr int kRead = 0, kFirstCache = 3;
    __builtin_prefetch(data, kRead, kFirstCache);
}

}  // namespace
}  // namespace pagoda
