// Runs the work items of a plan on a team of threads.
//
// Knows nothing of what an item computes.
#include "run.h"

#include <algorithm>
#include <chrono>

#include "lines.h"
#include "plan.h"
#include "reading.h"
#include "team.h"

namespace pagoda {
namespace {

// Below this many numbers a thread's share is not worth waking it.
constexpr int64_t kNumbersPerThread = 16384;

// Calls run(first, last) for `count` items, of `size` numbers each, in equal shares.
template <class Run>
void share(int64_t count, int64_t size, int num_threads, Run run) {
    const int team = int(std::clamp<int64_t>(count * size / kNumbersPerThread, 1, num_threads));
    in_parts(team, [&](int part) { run(count * part / team, count * (part + 1) / team); });
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
    part.input += first_row * call.depth * number_nbytes(call.number);
    part.out += first_row * call.columns * number_nbytes(call.number);
    part.rows = last_row - first_row;
    return part;
}

// The last block of columns, as a call of its own: it begins before the others end where they leave columns over.
LinearCall last_block_of(const LinearCall& call) {
    const int64_t first_number = (call.columns - kLinearBlockColumns) * number_nbytes(call.number);
    LinearCall last = call;
    last.weight += first_number * call.depth;
    if (call.up) last.up += first_number * call.depth;
    if (call.bias) last.bias += first_number;
    last.out += first_number;
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
    const auto sums_of = [&](int part) { return reinterpret_cast<float*>(sums.get() + size_t(part) * sums_nbytes); };
    for (int64_t row = 0; row < call.rows; row += block_rows) {
        const LinearCall block = rows_of(call, row, std::min(row + block_rows, call.rows));
        in_turns((block.rows + kLinearPanelRows - 1) / kLinearPanelRows, num_threads, [&](int64_t panel, int) {
            kernels.pack_panel(block, panel * kLinearPanelRows, 2, packed.get() + panel * panel_nbytes(call));
        });
        in_turns((num_blocks + turn - 1) / turn, num_threads, [&](int64_t index, int part) {
            kernels.linear_wide(block, packed.get(), index * turn, std::min((index + 1) * turn, num_blocks), sums_of(part));
        });
        if (leaves_columns(call)) kernels.linear_wide(last_block_of(block), packed.get(), 0, 1, sums_of(0));
    }
}

// Few rows are one block: weights are read from memory once. Of many, input of this size, but at least so many rows, stays
// in the second cache while weights go by.
constexpr int64_t kFewRows = 64;
constexpr int64_t kInputNbytes = 3 << 17;
constexpr int64_t kLeastBlockRows = 24;

// A block of rows at a time meets all weights; every thread has columns of its own.
void linear_on_vectors(const LinearCall& call, const KernelTable& kernels, int num_threads) {
    const int64_t fitting_rows = kInputNbytes / (call.depth * number_nbytes(call.number));
    const int64_t block_rows = call.rows <= kFewRows ? kFewRows : std::max(fitting_rows, kLeastBlockRows);
    const int64_t num_blocks = call.columns / kLinearLeastColumns;
    const int team = int(std::clamp<int64_t>(num_blocks, 1, num_threads));
    in_parts(team, [&](int part) {
        const int64_t first = num_blocks * part / team * kLinearLeastColumns;
        const int64_t last = part + 1 < team ? num_blocks * (part + 1) / team * kLinearLeastColumns : call.columns;
        for (int64_t row = 0; row < call.rows; row += block_rows)
            kernels.linear_on_vectors(rows_of(call, row, std::min(row + block_rows, call.rows)), first, last);
    });
}

// Whether tiles serve a call. They take whole steps of depth and at least a block of columns.
bool fits_tiles(const LinearCall& call, const KernelTable& kernels) {
    return kernels.linear && call.number == Number::bf16 && call.columns >= kLinearBlockColumns &&
           call.depth % kLinearDepthMultiple == 0;
}

// Calls run(tile, scratch) for each of `tiles`.
template <class Run>
void run_tiles(const AttendCall& call, const KernelTable& kernels, const std::vector<Tile>& tiles, int num_threads,
               Run run) {
    const int team = int(std::clamp<int64_t>(int64_t(tiles.size()), 1, num_threads));
    const size_t nbytes = size_t(kernels.scratch_nbytes(call));
    const Memory memory = allocate_lines(nbytes * size_t(team));
    in_turns(int64_t(tiles.size()), team,
             [&](int64_t tile, int part) { run(tiles[size_t(tile)], memory.get() + size_t(part) * nbytes); });
}

}  // namespace

void attend(const AttendCall& given, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    check_tables(given.tables, given.pages, num_rows, given.rule.reach != Reach::encoder);
    const ChosenTables chosen(given, kernels, num_threads);
    AttendCall call = given;
    if (!chosen.is_empty()) call.tables = chosen.tables();
    const std::vector<uint8_t> placed = find_placed(call);
    call.placed = placed.empty() ? nullptr : placed.data();
    const Plan plan = make_plan(call, num_threads);
    const int64_t num_tiles = int64_t(plan.tiles.size()), num_split = int64_t(plan.split_tiles.size());
    const int team = int(std::clamp<int64_t>(num_tiles, 1, num_threads));
    const size_t nbytes = size_t(kernels.scratch_nbytes(call));
    const Memory memory = allocate_lines(nbytes * size_t(team));
    const auto scratch_of = [&](int part) { return memory.get() + size_t(part) * nbytes; };
    in_turns(num_tiles, team,
             [&](int64_t tile, int part) { kernels.attend(call, plan.tiles[size_t(tile)], scratch_of(part)); });
    in_turns(num_split, team,
             [&](int64_t tile, int part) { kernels.fold(call, plan.split_tiles[size_t(tile)], scratch_of(part)); });
}

void logits(const ScoreCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    check_scored(call.attended, num_rows);
    run_tiles(call.attended, kernels, score_tiles(call.attended, kTileRows, kSplitTokens), num_threads,
              [&](const Tile& tile, uint8_t* scratch) { kernels.logits(call, tile, scratch); });
}

// First what weights are relative to, row by row; then their sums, token by token: no thread adds to another's.
void attention_mass(const ScoreCall& given, const KernelTable& kernels, int64_t num_rows, int num_threads) {
    check_scored(given.attended, num_rows);
    const AttendCall& attended = given.attended;
    const int64_t count = num_rows * attended.num_heads;
    std::vector<float> statistics(size_t(2 * count));
    ScoreCall call = given;
    call.maxima = statistics.data();
    call.normalisers = statistics.data() + count;
    run_tiles(attended, kernels, score_tiles(attended, kTileRows, attended.tables.context_lengths[0]), num_threads,
              [&](const Tile& tile, uint8_t* scratch) { kernels.sum_weights(call, tile, scratch); });
    run_tiles(attended, kernels, score_tiles(attended, count, kSplitTokens), num_threads,
              [&](const Tile& part, uint8_t* scratch) { kernels.add_weights(call, part, scratch); });
}

void linear(const LinearCall& call, const KernelTable& kernels, int num_threads) {
    if (!fits_tiles(call, kernels)) return linear_on_vectors(call, kernels, num_threads);
    if (call.rows > kLinearPanelRows || call.up) return linear_in_blocks(call, kernels, num_threads);
    const Memory packed = allocate_lines(size_t(panel_nbytes(call)));
    kernels.pack_panel(call, 0, call.rows > kLinearPanelRows / 2 ? 2 : 1, packed.get());
    const int64_t num_blocks = call.columns / kLinearBlockColumns;
    const int team = int(std::clamp<int64_t>(num_blocks, 1, num_threads));
    // Neighbouring blocks to a thread: each reads its part of the weights as one stream.
    in_parts(team, [&](int part) {
        kernels.linear(call, packed.get(), num_blocks * part / team, num_blocks * (part + 1) / team);
    });
    if (leaves_columns(call)) kernels.linear(last_block_of(call), packed.get(), 0, 1);
}

double peak_rate(const KernelTable& kernels, int num_threads) {
    typedef std::chrono::steady_clock Clock;
    constexpr int64_t kRounds = 1 << 20;
    double best = 0.0;
    for (int repeat = 0; repeat < 5; repeat++) {
        std::atomic<int64_t> count{0};
        const Clock::time_point start = Clock::now();
        in_parts(num_threads, [&](int) { count += kernels.multiply_at_peak(kRounds); });
        best = std::max(best, double(count) / std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
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

void widen(const WidenCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads) {
    share(num_numbers, 1, num_threads, [&](int64_t first, int64_t last) { kernels.widen(call, first, last); });
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
