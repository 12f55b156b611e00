// Linear layers on coded weights, over all threads.
//
// Knows sizes and shares of work only.
#include <algorithm>
#include <vector>

#include "run.h"
#include "team.h"

namespace pagoda {
namespace {

// A row of input as codes: of 16 bits at most.
constexpr int64_t kMostCodeNbytes = 2;
// Rows that meet all weights in one turn: their codes stay in the last cache.
constexpr int64_t kTurnRows = 256;
// Rows whose coding is not worth waking a thread for.
constexpr int64_t kFewCodedRows = 8;

// Input as codes, in memory that a thread keeps from one call to the next.
CodedRows coded_rows(int64_t rows, int64_t units) {
    thread_local std::vector<int8_t> codes;
    thread_local std::vector<float> scales, terms;
    thread_local std::vector<int32_t> starts;
    rows += kMostGroupRows;  // the last group may not be full
    codes.resize(size_t(rows * units * kUnitDepth * kMostCodeNbytes));
    scales.resize(size_t(rows * units));
    terms.resize(size_t(2 * rows * units));
    starts.resize(size_t(2 * rows * units));
    return {codes.data(), scales.data(), terms.data(), starts.data()};
}

CodedRoom room_for(const CodedCall& call) {
    thread_local std::vector<uint8_t> codes;
    thread_local std::vector<float> totals;
    const int64_t columns = kMostUnpackedBlocks * kCodedRows;
    codes.resize(size_t(columns * stretch_units(call.coding) * kUnitDepth));
    totals.resize(size_t(columns * call.rows));
    return {codes.data(), totals.data()};
}

}  // namespace

void coded_linear(const CodedCall& given, const KernelTable& kernels, int num_threads) {
    const int64_t units = num_units(given.depth), num_blocks = (given.columns + kCodedRows - 1) / kCodedRows;
    const int team = int(std::clamp<int64_t>(num_blocks, 1, num_threads)), nbytes = int(number_nbytes(given.number));
    for (int64_t row = 0; row < given.rows; row += kTurnRows) {
        CodedCall call = given;
        call.input += row * given.depth * nbytes;
        call.out += row * given.columns * nbytes;
        call.rows = std::min(given.rows - row, kTurnRows);
        call.coded = coded_rows(call.rows, units);
        const int coders = call.rows < kFewCodedRows ? 1 : num_threads;
        in_parts(coders, [&](int part) {
            kernels.coded->code_rows(call, call.rows * part / coders, call.rows * (part + 1) / coders);
        });
        // Neighbouring blocks to a thread: each reads its part of the weights as one stream.
        in_parts(team, [&](int part) {
            kernels.coded->multiply(call, num_blocks * part / team, num_blocks * (part + 1) / team, room_for(call));
        });
    }
}

}  // namespace pagoda
