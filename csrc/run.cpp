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

typedef std::unique_ptr<uint8_t, Free> Memory;

Memory allocate_lines(size_t nbytes) {
    Memory memory(static_cast<uint8_t*>(std::aligned_alloc(64, nbytes)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

// Below this many numbers a thread's share is not worth waking it.
constexpr int64_t kNumbersPerThread = 16384;

// Calls run(first, last) for `count` items, of `size` numbers each, in equal shares.
template <class Run>
void share(int64_t count, int64_t size, int num_threads, Run run) {
    const int team = int(std::clamp<int64_t>(count * size / kNumbersPerThread, 1, num_threads));
    if (team == 1) return run(0, count);
#pragma omp parallel for schedule(static, 1) num_threads(team)
    for (int part = 0; part < team; part++) run(count * part / team, count * (part + 1) / team);
}

// Packed input of this size is still in the second cache when the next columns want it.
constexpr int64_t kPackedNbytes = 1 << 20;
constexpr int64_t kMaxPanels = 16;
// Columns that a thread takes at a time: several turns each, of whole pairs of blocks.
constexpr int64_t kTurnsPerThread = 4;
constexpr int64_t kMaxTurnBlocks = 16;

int64_t panel_nbytes(const LinearCall& call) { return kLinearPanelRows * call.depth * 2; }

// Rows [first_row, last_row) of a call, as a call of its own.
LinearCall rows_of(const LinearCall& call, int64_t first_row, int64_t last_row) {
    LinearCall part = call;
    part.input += first_row * call.depth;
    part.out += first_row * call.columns;
    part.rows = last_row - first_row;
    return part;
}

// The last block of columns, as a call of its own: it begins before the others end where they leave columns over.
LinearCall last_block_of(const LinearCall& call) {
    const int64_t first_column = call.columns - kLinearBlockColumns;
    LinearCall last = call;
    last.weight += first_column * call.depth;
    if (call.up) last.up += first_column * call.depth;
    if (call.bias) last.bias += first_column;
    last.out += first_column;
    return last;
}

bool leaves_columns(const LinearCall& call) { return call.columns % kLinearBlockColumns != 0; }

// A block of rows at a time: packed together, then multiplied by all weights.
void linear_in_blocks(const LinearCall& call, const KernelTable& kernels, int num_threads) {
    const int64_t most_panels = std::clamp<int64_t>(kPackedNbytes / panel_nbytes(call), 2, kMaxPanels);
    const int64_t block_rows = most_panels * kLinearPanelRows;
    const size_t sums_nbytes = size_t(most_panels * kLinearPanelSums) * sizeof(float);
    const Memory packed = allocate_lines(size_t(most_panels * panel_nbytes(call)));
    const Memory sums = allocate_lines(sums_nbytes * size_t(num_threads));
    const int64_t num_blocks = call.columns / kLinearBlockColumns;
    const int64_t turn = std::clamp<int64_t>(num_blocks / (num_threads * kTurnsPerThread) / 2 * 2, 2, kMaxTurnBlocks);
#pragma omp parallel num_threads(num_threads)
    for (int64_t row = 0; row < call.rows; row += block_rows) {
        const LinearCall part = rows_of(call, row, std::min(row + block_rows, call.rows));
        const int64_t num_panels = (part.rows + kLinearPanelRows - 1) / kLinearPanelRows;
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < num_panels; panel++)
            kernels.pack_panel(part, panel * kLinearPanelRows, 2, packed.get() + panel * panel_nbytes(call));
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < num_blocks; block += turn)
            kernels.linear_wide(part, packed.get(), block, std::min(block + turn, num_blocks),
                                reinterpret_cast<float*>(sums.get() + size_t(omp_get_thread_num()) * sums_nbytes));
#pragma omp single
        if (leaves_columns(call))
            kernels.linear_wide(last_block_of(part), packed.get(), 0, 1, reinterpret_cast<float*>(sums.get()));
    }
}

}  // namespace

void attend(const AttendCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    check_tables(call.tables, call.pages, num_rows, call.rule.reach != Reach::encoder);
    const Plan plan = make_plan(call, num_threads);
    const int64_t num_tiles = int64_t(plan.tiles.size()), num_split = int64_t(plan.split_tiles.size());
    const int team = int(std::clamp<int64_t>(num_tiles, 1, num_threads));
    const size_t nbytes = size_t(kernels.scratch_nbytes(call));
    const Memory memory = allocate_lines(nbytes * size_t(team));
#pragma omp parallel num_threads(team)
    {
        uint8_t* scratch = memory.get() + size_t(omp_get_thread_num()) * nbytes;
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < num_tiles; tile++) kernels.attend(call, plan.tiles[size_t(tile)], scratch);
#pragma omp for schedule(dynamic, 1)
        for (int64_t tile = 0; tile < num_split; tile++) kernels.fold(call, plan.split_tiles[size_t(tile)], scratch);
    }
}

void linear(const LinearCall& call, const KernelTable& kernels, int num_threads) {
    if (call.rows > kLinearPanelRows || call.up) return linear_in_blocks(call, kernels, num_threads);
    const Memory packed = allocate_lines(size_t(panel_nbytes(call)));
    kernels.pack_panel(call, 0, call.rows > kLinearPanelRows / 2 ? 2 : 1, packed.get());
    const int64_t num_blocks = call.columns / kLinearBlockColumns;
    const int team = int(std::clamp<int64_t>(num_blocks, 1, num_threads));
    // Neighbouring blocks to a thread: each reads its part of the weights as one stream.
#pragma omp parallel for schedule(static, 1) num_threads(team)
    for (int part = 0; part < team; part++)
        kernels.linear(call, packed.get(), num_blocks * part / team, num_blocks * (part + 1) / team);
    if (leaves_columns(call)) kernels.linear(last_block_of(call), packed.get(), 0, 1);
}

void rms_norm(const NormCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    share(num_rows, call.width, num_threads,
          [&](int64_t first, int64_t last) { kernels.rms_norm(call, first, last); });
}

void gated_silu(const PairCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads) {
    share(num_numbers, 1, num_threads,
          [&](int64_t first, int64_t last) { kernels.gated_silu(call, first, last); });
}

void add(const PairCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads) {
    share(num_numbers, 1, num_threads, [&](int64_t first, int64_t last) { kernels.add(call, first, last); });
}

void rotate(const RotateCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    share(num_rows, call.num_heads * call.width, num_threads,
          [&](int64_t first, int64_t last) { kernels.rotate(call, first, last); });
}

void multiply_heads(const HeadsCall& call, const KernelTable& kernels, int64_t num_heads, int num_threads) {
    share(num_heads, call.depth * call.columns, num_threads,
          [&](int64_t first, int64_t last) { kernels.multiply_heads(call, first, last); });
}

}  // namespace pagoda
