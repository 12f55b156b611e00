// The threads that share a call, each a part of it.
//
// OpenMP keeps threads for every caller too, but lets them sleep between calls once there are more of them in the process
// than processors, as with a caller beside the main thread: then each of some hundred calls of a step waits for one to
// wake. Here they watch for the next call for a while before they sleep. Knows nothing of what is computed.
#pragma once

#include <atomic>
#include <cstdint>

namespace pagoda {

// Calls run(context, part) for each part in [0, count): part 0 here, each other one in a thread that this caller keeps.
void run_parts(int count, void (*run)(const void* context, int part), const void* context);

// Calls run(part) for `count` parts at once.
template <class Run>
void in_parts(int count, const Run& run) {
    run_parts(count, [](const void* context, int part) { (*static_cast<const Run*>(context))(part); }, &run);
}

// Calls run(item, part) for `count` items, of which each part takes the next one when it is done with another.
template <class Run>
void in_turns(int64_t count, int num_parts, const Run& run) {
    std::atomic<int64_t> next{0};
    in_parts(int(count < num_parts ? count : num_parts), [&](int part) {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) run(item, part);
    });
}

}  // namespace pagoda
