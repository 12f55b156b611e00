// A linear layer on vectors, for any number of rows, from weights as they lie.
//
// Rows of input meet rows of the weight along their depth: every output has a vector of sums, whose lanes are added at
// the end. Each adds its terms in one order, whatever is computed beside it, so a row's result does not depend on the
// batch it is in. Weights are read once for all rows that registers hold, and stay in the first caches for the others.
#pragma once

#include "pointwise.h"
#include "product.h"

namespace pagoda {
namespace {

constexpr int64_t kVectorNbytes = kLanes * 4;

// A vector of numbers of input or weight, in any order that is the same for both.
template <class Words>
inline typename Words::Right read_step(const uint8_t* data) {
    return Words::expand(load_words(data));
}

#if defined(__AVX512F__)
template <>
inline Pair read_step<Fp16Words>(const uint8_t* data) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(data);
    return {_mm512_cvtph_ps(_mm256_loadu_si256(halves)), _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1))};
}
#elif defined(__AVX2__)
template <>
inline Pair read_step<Fp16Words>(const uint8_t* data) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(data);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
#endif

inline void add_products(Floats& sum, Floats left, Floats right) { sum += left * right; }

inline void add_products(Floats& sum, const Pair& left, const Pair& right) {
    sum += left.even * right.even;
    sum += left.odd * right.odd;
}

#if defined(__AVX512BF16__)
inline void add_products(Floats& sum, Ints left, Ints right) {
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
}
#endif

// Columns whose weights are read together, one or two quads of them, and rows of input whose sums with them fit into
// registers: 32 or 16 of them, of which each row of pairs takes two beside its sums.
constexpr int kQuadColumns = kLinearLeastColumns;

template <class Words>
constexpr int most_rows(int num_quads) {
    if (kLanes < 16) return num_quads == 1 ? 2 : 1;
    if (sizeof(typename Words::Right) > sizeof(Floats)) return num_quads == 1 ? 4 : 2;
    return num_quads == 1 ? 6 : 3;
}

typedef float Quad __attribute__((vector_size(16)));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));

// The sums of all lanes of each of four vectors.
inline Quad totals(const Floats (&sums)[kQuadColumns]) {
#if defined(__AVX512F__)
    const __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    const __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    const __m256 first = _mm256_add_ps(_mm256_unpacklo_ps(sums[0], sums[1]), _mm256_unpackhi_ps(sums[0], sums[1]));
    const __m256 second = _mm256_add_ps(_mm256_unpacklo_ps(sums[2], sums[3]), _mm256_unpackhi_ps(sums[2], sums[3]));
    const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x44), _mm256_shuffle_ps(first, second, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
#else
    return Quad{horizontal_sum(sums[0]), horizontal_sum(sums[1]), horizontal_sum(sums[2]), horizontal_sum(sums[3])};
#endif
}

// Four numbers of a tensor.
inline Quad read_quad(const uint8_t* data, Number number) {
#if defined(__AVX2__)
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data));
    if (number == Number::bf16) return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
    if (number == Number::fp16) return _mm_cvtph_ps(halves);
#endif
    float values[kQuadColumns];
    read_row(values, data, number, kQuadColumns);
    return *reinterpret_cast<UnalignedQuad*>(values);
}

inline void write_quad(uint8_t* data, Number number, Quad values) {
#if defined(__AVX2__)
    typedef int32_t Words4 __attribute__((vector_size(16)));
    const Words4 bits = reinterpret_cast<Words4>(values);
    const Words4 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 & 0xffff;  // as bf16_of_float does
    const Words4 halves = values == values ? rounded : Words4{} + 0x7fc0;
    const __m128i bf16 = _mm_packus_epi32(reinterpret_cast<__m128i>(halves), __m128i{});
    if (number == Number::bf16) return _mm_storel_epi64(reinterpret_cast<__m128i*>(data), bf16);
    if (number == Number::fp16)
        return _mm_storel_epi64(reinterpret_cast<__m128i*>(data), _mm_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#endif
    write_row(data, number, reinterpret_cast<const float*>(&values), kQuadColumns);
}

// Numbers behind the last whole vector, followed by zeros.
struct Rest {
    alignas(64) uint8_t bytes[kVectorNbytes];

    Rest(const uint8_t* data, int64_t nbytes) : bytes{} { __builtin_memcpy(bytes, data, size_t(nbytes)); }
};

template <class Words>
__attribute__((noinline)) void add_rest(const uint8_t* input, const uint8_t* weight, int64_t stride, int64_t nbytes,
                                        Floats (&sums)[kQuadColumns]) {
    const typename Words::Right left = read_step<Words>(Rest(input, nbytes).bytes);
    for (int j = 0; j < kQuadColumns; j++)
        add_products(sums[j], left, read_step<Words>(Rest(weight + j * stride, nbytes).bytes));
}

// Of rows [row, row + kRows) of the input and kQuads quads of columns of a weight.
template <int kRows, int kQuads>
struct Results {
    Quad quads[kRows][kQuads];
};

// Which cache weights are asked for to be in, if any.
enum class Asked { none, first, second };

// The lines that are asked for while some columns are read, from `line` on as they lie in memory: the next follows where
// a column of a quad has a step.
struct Asking {
    const uint8_t* line;
    int64_t steps[kQuadColumns];
};

template <class Words, int kRows, int kQuads, Asked kAsked>
inline Results<kRows, kQuads> multiply(const LinearCall& call, const uint8_t* weight, int64_t row, int64_t column,
                                       const Asking& asking) {
    const int64_t stride = call.depth * number_nbytes(call.number), whole = stride / kVectorNbytes * kVectorNbytes;
    const uint8_t* input = call.input + row * stride;
    weight += column * stride;
    const uint8_t* line = asking.line;
    Floats sums[kRows][kQuads][kQuadColumns]{};
    for (int64_t offset = 0; offset < whole; offset += kVectorNbytes) {
        typename Words::Right left[kRows];
        for (int i = 0; i < kRows; i++) left[i] = read_step<Words>(input + i * stride + offset);
        for (int quad = 0; quad < kQuads; quad++)
            for (int j = 0; j < kQuadColumns; j++) {
                const uint8_t* data = weight + (quad * kQuadColumns + j) * stride + offset;
                const typename Words::Right right = read_step<Words>(data);
                const bool begins_line = kVectorNbytes == kLineNbytes || offset % kLineNbytes == 0;
                if (kAsked == Asked::first && begins_line) prefetch_first(line);
                if (kAsked == Asked::second && begins_line) prefetch(line);
                if (kAsked != Asked::none && begins_line) line += asking.steps[j];
                for (int i = 0; i < kRows; i++) add_products(sums[i][quad][j], left[i], right);
            }
    }
    Results<kRows, kQuads> results;
    for (int i = 0; i < kRows; i++)
        for (int quad = 0; quad < kQuads; quad++) {
            const uint8_t* rest = weight + quad * kQuadColumns * stride + whole;
            if (whole < stride)
                add_rest<Words>(input + i * stride + whole, rest, stride, stride - whole, sums[i][quad]);
            results.quads[i][quad] = totals(sums[i][quad]);
        }
    return results;
}

// gates = silu(gates) * ups, each rounded as if it were written and read again.
template <int kRows, int kQuads>
inline void gate(Results<kRows, kQuads>& gates, const Results<kRows, kQuads>& ups, Number number) {
    constexpr int64_t kCount = kRows * kQuads * kQuadColumns, kWhole = (kCount + kLanes - 1) / kLanes * kLanes;
    alignas(64) float values[kWhole]{}, others[kWhole];
    __builtin_memcpy(values, &gates, sizeof(gates));
    __builtin_memcpy(others, &ups, sizeof(ups));
    round_to(number, values, kCount);
    round_to(number, others, kCount);
    for (int64_t i = 0; i < kWhole; i += kLanes) store(values + i, silu(load(values + i)));
    round_to(number, values, kCount);
    for (int64_t i = 0; i < kCount; i++) values[i] *= others[i];
    __builtin_memcpy(&gates, values, sizeof(gates));
}

template <class Words, int kRows, int kQuads, Asked kAsked>
void compute(const LinearCall& call, int64_t row, int64_t column, const Asking& asking, const Asking& up) {
    const int64_t nbytes = number_nbytes(call.number);
    auto results = multiply<Words, kRows, kQuads, kAsked>(call, call.weight, row, column, asking);
    if (call.up) gate(results, multiply<Words, kRows, kQuads, kAsked>(call, call.up, row, column, up), call.number);
    for (int i = 0; i < kRows; i++)
        for (int quad = 0; quad < kQuads; quad++) {
            const int64_t first = column + quad * kQuadColumns;
            Quad result = results.quads[i][quad];
            if (call.bias) result += read_quad(call.bias + first * nbytes, call.number);
            write_quad(call.out + ((row + i) * call.columns + first) * nbytes, call.number, result);
        }
}

template <class Words, int kRows, int kQuads>
void compute_some_rows(const LinearCall& call, int64_t row, int64_t count, int64_t column, Asked asked,
                       const Asking& asking, const Asking& up) {
    if constexpr (kRows > 1)
        if (count < kRows)
            return compute_some_rows<Words, kRows - 1, kQuads>(call, row, count, column, asked, asking, up);
    switch (asked) {
        case Asked::none: return compute<Words, kRows, kQuads, Asked::none>(call, row, column, asking, up);
        case Asked::first: return compute<Words, kRows, kQuads, Asked::first>(call, row, column, asking, up);
        case Asked::second: return compute<Words, kRows, kQuads, Asked::second>(call, row, column, asking, up);
    }
}

// Weights of some columns that stay in the first cache beside those that are read.
constexpr int64_t kFewNbytes = 16 << 10;
// A column that the processor reads ahead in by itself.
constexpr int64_t kLongNbytes = 8 << 10;

// Rows meet some columns in a few turns. The weights of the next columns, which follow without a gap, are asked for in
// equal shares while they do. Of two weights that are read once, each asks for the other's, which is read next. Long
// columns that are read once, a line at a time, come faster unasked.
template <class Words, int kQuads>
void compute_columns(const LinearCall& call, int64_t first_column, int64_t last_column) {
    constexpr int kMost = most_rows<Words>(kQuads), kColumns = kQuads * kQuadColumns;
    const int64_t stride = call.depth * number_nbytes(call.number), num_turns = (call.rows + kMost - 1) / kMost;
    const int64_t num_asking = num_turns < kQuadColumns ? num_turns : kQuadColumns;
    const bool comes_unasked = stride >= kLongNbytes && num_turns == 1 && kVectorNbytes == kLineNbytes;
    const Asked further = comes_unasked ? Asked::none : Asked::second;
    const Asked asked = kColumns * stride <= kFewNbytes ? Asked::first : further;
    for (int64_t begin = first_column; begin < last_column; begin += kColumns) {
        const int64_t column = begin + kColumns < last_column ? begin : last_column - kColumns;
        const int64_t next = column + kColumns;
        Asking asking{call.weight + next * stride, {}}, up = asking;
        if (call.up && num_turns == 1) asking.line = call.up + column * stride;
        if (call.up && num_turns > 1) up.line = call.up + next * stride;
        for (int64_t turn = 0; turn < num_turns; turn++) {
            const int64_t row = call.rows * turn / num_turns, count = call.rows * (turn + 1) / num_turns - row;
            int64_t num_steps = 0;
            for (int j = 0; j < kQuadColumns; j++) {
                asking.steps[j] = up.steps[j] = j % num_asking == turn ? kLineNbytes : 0;
                num_steps += asking.steps[j] != 0;
            }
            const Asked now = turn < num_asking ? asked : Asked::none;
            compute_some_rows<Words, kMost, kQuads>(call, row, count, column, now, asking, up);
            asking.line += num_steps * kQuads * stride;
            up.line += num_steps * kQuads * stride;
        }
    }
}

// Few rows meet more columns at a time, in up to so many turns: sums begin and end less often. Where columns do not stay
// in the first cache between turns anyway, more of them at a time save reading inputs.
constexpr int kFewTurns = 2, kFewDeepTurns = 4;

template <class Words>
void compute_numbers(const LinearCall& call, int64_t first_column, int64_t last_column) {
    constexpr int kColumns = 2 * kQuadColumns;
    const int64_t nbytes = kColumns * call.depth * number_nbytes(call.number);
    const int num_kept = call.up ? 2 : 1;
    const bool stays = nbytes <= kFewNbytes, all_stay = num_kept * nbytes <= kFewNbytes;
    const bool half_stays = !stays && nbytes / 2 <= kFewNbytes && call.rows <= most_rows<Words>(1);
    const bool are_few = call.rows <= (stays ? kFewTurns : kFewDeepTurns) * most_rows<Words>(2);
    if (are_few && all_stay == stays && !half_stays && last_column - first_column >= kColumns)
        return compute_columns<Words, 2>(call, first_column, last_column);
    compute_columns<Words, 1>(call, first_column, last_column);
}

// Output columns [first_column, last_column), of which there are at least kLinearLeastColumns.
inline void linear_on_vectors(const LinearCall& call, int64_t first_column, int64_t last_column) {
    switch (call.number) {
        case Number::fp32: return compute_numbers<Fp32Words>(call, first_column, last_column);
        case Number::fp16: return compute_numbers<Fp16Words>(call, first_column, last_column);
#if defined(__AVX512BF16__)
        case Number::bf16: return compute_numbers<Bf16DotWords>(call, first_column, last_column);
#else
        case Number::bf16: return compute_numbers<Bf16Words>(call, first_column, last_column);
#endif
    }
}

}  // namespace
}  // namespace pagoda
