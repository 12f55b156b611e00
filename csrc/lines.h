// Memory that begins on a cache line.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pagoda {

struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
};

typedef std::unique_ptr<uint8_t, Free> Memory;

inline Memory allocate_lines(size_t nbytes) {
    Memory memory(static_cast<uint8_t*>(std::aligned_alloc(64, nbytes)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

}  // namespace pagoda
