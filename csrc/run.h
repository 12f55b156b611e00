// The operations, over all threads.
#pragma once

#include <vector>

#include "coding.h"

namespace pagoda {

void attend(const AttendCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads);
// Of one sequence, in the memory that the call names.
void logits(const ScoreCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads);
void attention_mass(const ScoreCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads);
void linear(const LinearCall& call, const KernelTable& kernels, int num_threads);
// Layers that are given the same rows: input, rows, depth and number of all are the same. `coded` is not used.
void coded_linears(const std::vector<CodedCall>& given, const KernelTable& kernels, int num_threads);
// Reads the matrices alone that a row meets. Throws std::out_of_range, before anything is computed, for one that is not
// there.
void coded_experts(const ExpertsCall& call, const KernelTable& kernels, int num_threads);
void coded_heads(const CodedHeadsCall& call, const KernelTable& kernels, int64_t num_heads, int num_threads);
// Multiplications of bf16 a second, best of a few times, with nothing else to do.
double peak_rate(const KernelTable& kernels, int num_threads);
void rms_norm(const NormCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads);
void gated_silu(const PairCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads);
void add(const PairCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads);
void widen(const WidenCall& call, const KernelTable& kernels, int64_t num_numbers, int num_threads);
void rotate(const RotateCall& call, const KernelTable& kernels, int64_t num_rows, int num_threads);
void multiply_heads(const HeadsCall& call, const KernelTable& kernels, int64_t num_heads, int num_threads);
void move_tokens(const MoveCall& call, int num_threads);
void store(const StoreCall& call, int64_t num_rows, int num_threads);

}  // namespace pagoda
