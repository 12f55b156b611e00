// Linear layers on coded weights, those of experts, and products of heads, over all threads.
//
// Knows sizes and shares of work only.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
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

// Rows of input as codes, in memory that a thread keeps from one call to the next.
struct CodedMemory {
    std::vector<int8_t> codes;
    std::vector<float> scales, terms;
    std::vector<int32_t> starts;

    CodedRows of(int64_t rows, int64_t units) {
        rows += kMostGroupRows;  // the last group may not be full
        const size_t count = size_t(rows * units);
        if (scales.size() < count) {  // never smaller: what is made again is written
            codes.resize(count * kUnitDepth * kMostCodeNbytes);
            scales.resize(count);
            terms.resize(2 * count);
            starts.resize(2 * count);
        }
        return {codes.data(), scales.data(), terms.data(), starts.data()};
    }
};

// So many numbers in `memory`, from the begin of a cache line on: vectors of them that cross lines are read twice.
template <class T>
T* aligned_in(std::vector<T>& memory, int64_t count) {
    constexpr size_t kLineNbytes = 64;
    memory.resize(size_t(count) + kLineNbytes / sizeof(T));
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + kLineNbytes - 1) / kLineNbytes * kLineNbytes);
}

CodedRoom room_for(const CodedCall& call) {
    thread_local std::vector<uint8_t> codes;
    thread_local std::vector<float> scales, totals;
    const int64_t columns = kMostUnpackedBlocks * kCodedRows, units = stretch_units(call.coding);
    return {aligned_in(codes, columns * units * kUnitDepth), aligned_in(scales, columns * units * kMostUnitScales),
            aligned_in(totals, columns * call.rows)};
}

int64_t num_blocks(const CodedCall& call) { return (call.columns + kCodedRows - 1) / kCodedRows; }

// Whether the same codes of rows enter two products: what sums begin with, and what minima are multiplied by, too.
bool take_same_rows(const Coding& a, const Coding& b) {
    const auto wide = [](const Coding& coding) { return coding.bits == 8 || coding.has_table; };
    return wide(a) == wide(b) && (a.num_parts < 2) == (b.num_parts < 2) && a.has_minimum == b.has_minimum && a.zero == b.zero;
}

// Codes the rows that `calls` have in common, once for those that can share them, in memory of this thread.
void code_input(std::vector<CodedCall>& calls, const KernelTable& kernels, int num_threads) {
    thread_local std::vector<CodedMemory> memories;
    if (memories.size() < calls.size()) memories.resize(calls.size());
    const int64_t rows = calls.front().rows, units = num_units(calls.front().depth);
    for (size_t i = 0; i < calls.size(); i++) {
        CodedCall& call = calls[i];
        const auto alike = std::find_if(calls.begin(), calls.begin() + ptrdiff_t(i), [&](const CodedCall& before) {
            return take_same_rows(before.coding, call.coding);
        });
        const bool is_first = alike == calls.begin() + ptrdiff_t(i);
        call.coded = is_first ? memories[i].of(rows, units) : alike->coded;
        if (!is_first) continue;
        in_parts(num_threads, [&](int part) {
            kernels.coded->code_rows(call, rows * part / num_threads, rows * (part + 1) / num_threads);
        });
    }
}

// The part of `calls` that lies in bytes [first, last) of all their weights.
void multiply_bytes(const std::vector<CodedCall>& calls, const KernelTable& kernels, int64_t first, int64_t last) {
    int64_t begin = 0;  // of a layer among all bytes
    for (const CodedCall& call : calls) {
        const int64_t nbytes = block_nbytes(call.coding, call.depth), blocks = num_blocks(call);
        const auto block_at = [&](int64_t place) {
            return std::clamp<int64_t>((place - begin + nbytes - 1) / nbytes, 0, blocks);
        };
        kernels.coded->multiply(call, block_at(first), block_at(last), room_for(call));
        begin += blocks * nbytes;
    }
}

// Weights that a thread takes at a time, at least: some microseconds of few rows, and less where many take longer.
constexpr int64_t kGrainNbytes = 1 << 16, kFineGrainNbytes = 1 << 12;

// Each thread reads neighbouring blocks, so that they are one stream, or few, and codes few rows for itself: what another
// has written is farther away than what it was made of.
void multiply_all(std::vector<CodedCall>& calls, const KernelTable& kernels, int num_threads) {
    int64_t total = 0, most_blocks = 0;
    for (const CodedCall& call : calls) {
        total += num_blocks(call) * block_nbytes(call.coding, call.depth);
        most_blocks += num_blocks(call);
    }
    const bool are_few = calls.front().rows < kFewCodedRows;
    if (!are_few) code_input(calls, kernels, num_threads);
    const int team = int(std::clamp<int64_t>(most_blocks, 1, num_threads));
    const int64_t grain = are_few ? kGrainNbytes : kFineGrainNbytes;
    Streams grains((total + grain - 1) / grain, team);
    in_parts(team, [&](int part) {
        std::vector<CodedCall> own = calls;
        if (are_few) code_input(own, kernels, 1);
        grains.take(part, [&](int64_t first, int64_t last) {
            multiply_bytes(own, kernels, first * grain, std::min(last * grain, total));
        });
    });
}

// Pairs of a row and an expert that are computed in one turn: what they gather stays in the last cache.
constexpr int64_t kTurnPairs = 1024;

// Rows that meet the same expert: pairs [first, first + count) of those that are sorted.
struct Share {
    int64_t expert;
    int64_t first;
    int64_t count;
};

// All pairs by their numbers, those of an expert side by side, in `order`; returns whose they are. No share is longer
// than rows that meet all weights in one turn.
std::vector<Share> shared_out(const ExpertsCall& call, std::vector<int64_t>& order) {
    const int64_t pairs = call.linear.rows * call.per_row;
    std::vector<int64_t> starts(size_t(call.num_experts) + 1);
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int64_t expert = call.experts[pair];
        if (expert < 0 || expert >= call.num_experts)
            throw std::out_of_range("There is no expert " + std::to_string(expert) + " among " +
                                    std::to_string(call.num_experts) + ".");
        starts[size_t(expert) + 1]++;
    }
    std::vector<Share> shares;
    for (int64_t expert = 0; expert < call.num_experts; expert++) {
        const int64_t first = starts[size_t(expert)], last = first + starts[size_t(expert) + 1];
        for (int64_t begin = first; begin < last; begin += kTurnRows)
            shares.push_back({expert, begin, std::min(last - begin, kTurnRows)});
        starts[size_t(expert) + 1] = last;
    }
    order.resize(size_t(pairs));
    for (int64_t pair = 0; pair < pairs; pair++) order[size_t(starts[size_t(call.experts[pair])]++)] = pair;
    return shares;
}

// Memory that a thread keeps from one call to the next, for rows that are gathered.
struct Gathered {
    uint8_t* input;
    uint8_t* out;
    CodedRows coded;
};

Gathered gathered(int64_t pairs, int64_t num_shares, int64_t input_nbytes, int64_t out_nbytes, int64_t units) {
    thread_local std::vector<uint8_t> input, out;
    thread_local CodedMemory coded;
    input.resize(size_t(pairs * input_nbytes));
    out.resize(size_t(pairs * out_nbytes));
    return {input.data(), out.data(), coded.of(pairs + num_shares * kMostGroupRows, units)};
}

// The product of share number `number` of a turn, whose rows lie in `memory` behind those of `skipped` pairs. The codes of
// each have room for a last group that is not full.
CodedCall call_of(const ExpertsCall& call, const Share& share, const Gathered& memory, int64_t number, int64_t skipped) {
    const int64_t nbytes = number_nbytes(call.linear.number), units = num_units(call.linear.depth);
    const int64_t blocks = num_blocks(call.linear);
    CodedCall own = call.linear;
    own.input = memory.input + skipped * own.depth * nbytes;
    own.out = memory.out + skipped * own.columns * nbytes;
    own.weight += share.expert * blocks * block_nbytes(own.coding, own.depth);
    if (own.bias) own.bias += share.expert * own.columns * nbytes;
    own.rows = share.count;
    const int64_t before = (skipped + number * kMostGroupRows) * units;
    own.coded = {memory.coded.codes + before * kUnitDepth * kMostCodeNbytes, memory.coded.scales + before,
                 memory.coded.terms + before * 2, memory.coded.starts + before * 2};
    return own;
}

// Of shares that follow one another. Each is divided into as many parts as there are threads, which take them by turns.
void multiply_shares(const ExpertsCall& call, const Share* shares, int64_t num_shares, const int64_t* order,
                     const KernelTable& kernels, int num_threads) {
    const int64_t nbytes = number_nbytes(call.linear.number), units = num_units(call.linear.depth);
    const int64_t input_nbytes = call.linear.depth * nbytes, out_nbytes = call.linear.columns * nbytes;
    const int64_t blocks = num_blocks(call.linear), first = shares[0].first;
    const int64_t pairs = shares[num_shares - 1].first + shares[num_shares - 1].count - first;
    const int movers = pairs < kFewCodedRows ? 1 : num_threads;
    const Gathered memory = gathered(pairs, num_shares, input_nbytes, out_nbytes, units);
    in_turns(num_shares, movers, [&](int64_t share, int) {
        const CodedCall own = call_of(call, shares[share], memory, share, shares[share].first - first);
        for (int64_t i = 0; i < own.rows; i++) {
            const int64_t row = order[shares[share].first + i] / call.per_row;
            std::memcpy(memory.input + (shares[share].first - first + i) * input_nbytes,
                        call.linear.input + row * input_nbytes, size_t(input_nbytes));
        }
        kernels.coded->code_rows(own, 0, own.rows);
    });
    in_turns(num_shares * num_threads, num_threads, [&](int64_t item, int) {
        const int64_t number = item / num_threads, part = item % num_threads;
        const CodedCall own = call_of(call, shares[number], memory, number, shares[number].first - first);
        kernels.coded->multiply(own, blocks * part / num_threads, blocks * (part + 1) / num_threads, room_for(own));
    });
    in_parts(movers, [&](int part) {
        for (int64_t i = pairs * part / movers; i < pairs * (part + 1) / movers; i++)
            std::memcpy(call.linear.out + order[first + i] * out_nbytes, memory.out + i * out_nbytes, size_t(out_nbytes));
    });
}

}  // namespace

void coded_linears(const std::vector<CodedCall>& given, const KernelTable& kernels, int num_threads) {
    const int64_t nbytes = number_nbytes(given.front().number), rows = given.front().rows;
    for (int64_t row = 0; row < rows; row += kTurnRows) {
        std::vector<CodedCall> calls = given;
        for (CodedCall& call : calls) {
            call.input += row * call.depth * nbytes;
            call.out += row * call.columns * nbytes;
            call.rows = std::min(rows - row, kTurnRows);
        }
        multiply_all(calls, kernels, num_threads);
    }
}

void coded_experts(const ExpertsCall& call, const KernelTable& kernels, int num_threads) {
    thread_local std::vector<int64_t> order;
    const std::vector<Share> shares = shared_out(call, order);
    for (size_t begin = 0, end = 0; begin < shares.size(); begin = end) {
        for (int64_t pairs = 0; end < shares.size() && (end == begin || pairs + shares[end].count <= kTurnPairs); end++)
            pairs += shares[end].count;
        multiply_shares(call, &shares[begin], int64_t(end - begin), order.data(), kernels, num_threads);
    }
}

void coded_heads(const CodedHeadsCall& call, const KernelTable& kernels, int64_t num_heads, int num_threads) {
    const int team = int(std::clamp<int64_t>(num_heads, 1, num_threads));
    in_parts(team, [&](int part) {
        thread_local std::vector<float> memory;
        float* const room = aligned_in(memory, 2 * kMostHeadRows * call.depth);
        kernels.coded->multiply_heads(call, num_heads * part / team, num_heads * (part + 1) / team, room);
    });
}

}  // namespace pagoda
