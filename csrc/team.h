// The threads that share a call, each a part of it.
//
// OpenMP keeps threads for every caller too, but lets them sleep between calls once there are more of them in the process
// than processors, as with a caller beside the main thread: then each of some hundred calls of a step waits for one to
// wake. Here they watch for the next call for a while before they sleep. Knows nothing of what is computed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

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

// Items of a part that nobody has taken yet, [first, last), as one number. Parts write to lines of their own.
class alignas(64) Untaken {
  public:
    void set(int64_t first, int64_t last) { range_ = packed(first, last); }

    // Takes half of them, from the front or from the back; false if there are none.
    bool take(bool from_front, int64_t& first, int64_t& last) {
        uint64_t range = range_.load(std::memory_order_relaxed), rest;
        do {
            first = int64_t(range >> 32), last = int64_t(range & 0xffffffff);
            if (first >= last) return false;
            const int64_t some = (last - first + 1) / 2;
            if (from_front) {
                rest = packed(first + some, last);
                last = first + some;
            } else {
                rest = packed(first, last - some);
                first = last - some;
            }
        } while (!range_.compare_exchange_weak(range, rest, std::memory_order_relaxed));
        return true;
    }

  private:
    static uint64_t packed(int64_t first, int64_t last) { return uint64_t(first) << 32 | uint64_t(last); }

    std::atomic<uint64_t> range_{0};
};

// Items, fewer than 2^32, of which each part has a share that it takes from front to back, half of the rest at a time: what
// it reads is one stream. When it is done it goes on with the end of another's, so that nobody waits for a processor that
// is slower for a while.
class Streams {
  public:
    Streams(int64_t count, int num_parts) : shares_(std::size_t(num_parts)) {
        for (int part = 0; part < num_parts; part++)
            shares_[std::size_t(part)].set(count * part / num_parts, count * (part + 1) / num_parts);
    }

    // Calls run(first, last) for what `part` takes.
    template <class Run>
    void take(int part, const Run& run) {
        int64_t first, last;
        for (std::size_t turn = 0; turn < shares_.size(); turn++)
            while (shares_[(std::size_t(part) + turn) % shares_.size()].take(turn == 0, first, last)) run(first, last);
    }

  private:
    std::vector<Untaken> shares_;
};

}  // namespace pagoda
