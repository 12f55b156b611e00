// Memory for page pools, and how fast this machine reads it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagoda {

constexpr size_t kHugePageNbytes = size_t(2) << 20;

// Zeroed by the system on first touch, aligned to huge pages and advised for them, or against; null if there is none.
uint8_t* map_memory(size_t nbytes, bool in_huge_pages = true);
void unmap_memory(uint8_t* memory, size_t nbytes);

// Best of `repeats` sequential reads of a fresh buffer by all threads, in bytes per second.
double read_bandwidth(size_t nbytes, int num_threads, int repeats, bool in_huge_pages);

}  // namespace pagoda
