// Asks the system for memory and measures reading it. Knows nothing of what the memory is for.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "team.h"

namespace pagoda {
namespace {

size_t whole_pages(size_t nbytes) { return (nbytes + kHugePageNbytes - 1) / kHugePageNbytes * kHugePageNbytes; }

typedef uint64_t Words __attribute__((vector_size(16), may_alias));

// Enough sums that the loads, not the additions, set the pace.
uint64_t sum_of(const uint8_t* data, size_t nbytes) {
    constexpr size_t kSums = 8;
    Words sums[kSums] = {};
    for (size_t offset = 0; offset + sizeof(sums) <= nbytes; offset += sizeof(sums))
        for (size_t i = 0; i < kSums; i++)
            sums[i] += *reinterpret_cast<const Words*>(data + offset + i * sizeof(Words));
    for (size_t i = 1; i < kSums; i++) sums[0] += sums[i];
    return sums[0][0] + sums[0][1];
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

uint8_t* map_memory(size_t nbytes, bool in_huge_pages) {
    const size_t size = whole_pages(nbytes), reserved = size + kHugePageNbytes;
    void* start = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    uint8_t* first = static_cast<uint8_t*>(start);
    uint8_t* aligned = reinterpret_cast<uint8_t*>(whole_pages(reinterpret_cast<size_t>(start)));
    // Give back what alignment did not need.
    if (aligned != first) munmap(first, size_t(aligned - first));
    if (aligned + size != first + reserved) munmap(aligned + size, size_t(first + reserved - aligned - size));
#if defined(MADV_HUGEPAGE)
    madvise(aligned, size, in_huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // a wish
#endif
    return aligned;
}

void unmap_memory(uint8_t* memory, size_t nbytes) { munmap(memory, whole_pages(nbytes)); }

double read_bandwidth(size_t nbytes, int num_threads, int repeats, bool in_huge_pages) {
    uint8_t* data = map_memory(nbytes, in_huge_pages);
    if (!data) throw std::bad_alloc();
    const size_t part = nbytes / size_t(num_threads) / 128 * 128;
    double best = 0.0;
    std::atomic<uint64_t> total{0};
    in_parts(num_threads, [&](int thread) { std::memset(data + size_t(thread) * part, 1, part); });
    for (int repeat = 0; repeat < repeats; repeat++) {
        const double start = seconds();
        in_parts(num_threads, [&](int thread) { total += sum_of(data + size_t(thread) * part, part); });
        best = std::max(best, double(part) * num_threads / (seconds() - start));
    }
    volatile uint64_t sink = total;  // the reads must not be optimised away
    (void)sink;
    unmap_memory(data, nbytes);
    return best;
}

}  // namespace pagoda
