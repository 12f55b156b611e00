#include "team.h"

#include <pthread.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pagoda {
namespace {

// Looks, with a pause after each: a few tenths of a millisecond. Threads that have no processor of their own do not look.
constexpr int kMostLooks = 8192;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

struct Work {
    void (*run)(const void* context, int part);
    const void* context;
    int part;
};

// A thread that does one piece of work after the other. A number counts what it was given, another what it has done.
class Worker {
  public:
    explicit Worker(int most_looks) : most_looks_(most_looks), thread_([this] { serve(); }) {}

    ~Worker() {
        give({nullptr, nullptr, 0});
        thread_.join();
    }

    void give(const Work& work) {
        work_ = work;
        given_.store(given_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
        if (!sleeps_.load(std::memory_order_seq_cst)) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_one();
    }

    void wait() const {
        const uint64_t given = given_.load(std::memory_order_relaxed);
        for (int looks = 0; done_.load(std::memory_order_acquire) != given; looks++) {
            if (looks < most_looks_)
                pause();
            else
                std::this_thread::yield();
        }
    }

  private:
    void serve() {
        for (uint64_t done = 0;; done_.store(++done, std::memory_order_release)) {
            await(done);
            if (!work_.run) return;
            work_.run(work_.context, work_.part);
        }
    }

    // Until more was given than this.
    void await(uint64_t done) {
        for (int looks = 0; looks < most_looks_; looks++, pause())
            if (given_.load(std::memory_order_acquire) != done) return;
        std::unique_lock<std::mutex> lock(mutex_);
        sleeps_.store(true, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return given_.load(std::memory_order_seq_cst) != done; });
        sleeps_.store(false, std::memory_order_relaxed);
    }

    const int most_looks_;
    Work work_{};
    alignas(64) std::atomic<uint64_t> given_{0};
    alignas(64) std::atomic<uint64_t> done_{0};
    std::atomic<bool> sleeps_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::thread thread_;  // the last: it begins when all else is there
};

std::atomic<int> num_forks{0};

typedef std::vector<std::unique_ptr<Worker>> Workers;

// The threads of one caller.
class Team {
  public:
    ~Team() { forget_others(); }

    // At least so many. Those beyond the processors, of which the caller has one, do not look for work.
    Workers& of(int count) {
        forget_others();
        while (int(workers_->size()) < count) {
            const bool has_processor = workers_->size() + 1 < std::thread::hardware_concurrency();
            workers_->push_back(std::make_unique<Worker>(has_processor ? kMostLooks : 0));
        }
        return *workers_;
    }

  private:
    // A process that was forked has none of the threads, and cannot end them.
    void forget_others() {
        const int now = num_forks.load(std::memory_order_relaxed);
        if (now == forks_) return;
        forks_ = now;
        (void)workers_.release();
        workers_ = std::make_unique<Workers>();
    }

    int forks_ = num_forks.load();
    std::unique_ptr<Workers> workers_ = std::make_unique<Workers>();
};

Workers& workers_of_this_thread(int count) {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1); });
    (void)registered;
    thread_local Team team;
    return team.of(count);
}

}  // namespace

void run_parts(int count, void (*run)(const void* context, int part), const void* context) {
    if (count <= 0) return;
    if (count == 1) return run(context, 0);
    Workers& workers = workers_of_this_thread(count - 1);
    for (int part = 1; part < count; part++) workers[size_t(part - 1)]->give({run, context, part});
    run(context, 0);
    for (int part = 1; part < count; part++) workers[size_t(part - 1)]->wait();
}

}  // namespace pagoda
