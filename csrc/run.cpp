// Runs the work items of a plan on a team of threads.
//
// Threads come from OpenMP, whose team torch shares. Knows nothing of what an item computes.
#include "run.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "plan.h"

namespace pagoda {
namespace {

struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
};

}  // namespace

void attend(const AttendCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    check_tables(call.tables, call.pages, num_rows);
    const Plan plan = make_plan(call, num_threads);
    const int64_t num_tiles = int64_t(plan.tiles.size()), num_split = int64_t(plan.split_tiles.size());
    const int team = int(std::clamp<int64_t>(num_tiles, 1, num_threads));
    const size_t nbytes = size_t(kernels.scratch_nbytes(call));
    const std::unique_ptr<uint8_t, Free> memory(static_cast<uint8_t*>(std::aligned_alloc(64, nbytes * size_t(team))));
    if (!memory) throw std::bad_alloc();
#pragma omp parallel num_threads(team)
    {
        uint8_t* scratch = memory.get() + size_t(omp_get_thread_num()) * nbytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < num_tiles; tile++) kernels.attend(call, plan.tiles[size_t(tile)], scratch);
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < num_split; tile++) kernels.fold(call, plan.split_tiles[size_t(tile)], scratch);
    }
}

}  // namespace pagoda
