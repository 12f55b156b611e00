// The kernel table of one instruction set: compiled once for each, with its flags, its name and the name of its table.
//
// Chooses the arithmetic from the formats of pages and queries. Instructions that multiply bf16 by bf16, or bytes, serve
// bf16 queries only: rounding wider ones would lose what the caller kept.
#include "attend.h"
#include "heads.h"
#include "linear_vectors.h"
#include "peak.h"
#include "pointwise.h"
#include "scores.h"
#include "summaries.h"
#if defined(__AMX_BF16__)
#include "linear.h"
#endif

namespace pagoda {
namespace {

template <class Arithmetic>
void attend_numbers(const AttendCall& call, const Tile& tile, const Scratch& scratch) {
    TileAttention<Arithmetic, NumberKeys, NumberValues>(call, tile, scratch).run();
}

#if defined(__AVX2__)

template <class Arithmetic, template <class> class Keys>
void attend_values(const AttendCall& call, const Tile& tile, const Scratch& scratch) {
    if (multiplies_bytes(call.pages.value) && !call.pages.values_in_keys)
        return TileAttention<Arithmetic, Keys, ByteValues>(call, tile, scratch).run();
    TileAttention<Arithmetic, Keys, NumberValues>(call, tile, scratch).run();
}

template <class Arithmetic>
void attend_any(const AttendCall& call, const Tile& tile, const Scratch& scratch) {
    if (multiplies_bytes(call.pages.key)) return attend_values<Arithmetic, ByteKeys>(call, tile, scratch);
    attend_values<Arithmetic, NumberKeys>(call, tile, scratch);
}

#endif

void attend_bf16(const AttendCall& call, const Tile& tile, const Scratch& scratch) {
#if defined(__AMX_BF16__)
    if (call.query.number == Number::bf16 && TileArithmetic::fits(call.pages))
        return attend_any<TileArithmetic>(call, tile, scratch);
#endif
#if defined(__AVX512BF16__)
    if (call.query.number == Number::bf16) return attend_any<DotArithmetic>(call, tile, scratch);
#elif defined(__AVX2__)
    if (call.query.number == Number::bf16 && call.pages.key.width <= kMostShortWidth)
        return attend_any<ShortArithmetic>(call, tile, scratch);
#endif
    attend_numbers<VectorArithmetic<Bf16Words>>(call, tile, scratch);
}

void attend(const AttendCall& call, const Tile& tile, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const Scratch scratch = lay_out(call, cursor);
    switch (call.pages.number) {
        case Number::fp32: return attend_numbers<VectorArithmetic<Fp32Words>>(call, tile, scratch);
        case Number::fp16: return attend_numbers<VectorArithmetic<Fp16Words>>(call, tile, scratch);
        case Number::bf16: return attend_bf16(call, tile, scratch);
    }
}

void fold(const AttendCall& call, const SplitTile& splits, uint8_t* memory) {
    Cursor cursor{memory, 0};
    const Scratch scratch = lay_out(call, cursor);
    clear(scratch.total, splits.tile.num_rows);
    for (int64_t split = 0; split < splits.count; split++) {
        const float* partial = splits.partials[split];
        for (int64_t row = 0; row < splits.tile.num_rows; row++, partial += partial_floats(call))
            fold_row(scratch.total, row, partial[0], partial[1], partial + 2);
    }
    write_out(call, splits.tile, scratch.total, scratch.row);
}

}  // namespace

extern const CodedKernels PAGODA_CODED_TABLE;
extern const KernelTable PAGODA_TABLE;
const KernelTable PAGODA_TABLE = {PAGODA_NAME,
                                  scratch_nbytes,
                                  attend,
                                  fold,
                                  logits,
                                  sum_weights,
                                  add_weights,
                                  summarise,
                                  bound_scores,
                                  multiply_at_peak,
                                  linear_on_vectors,
#if defined(__AMX_BF16__)
                                  pack_panel,
                                  linear,
                                  linear_wide,
#else
                                  nullptr,
                                  nullptr,
                                  nullptr,
#endif
                                  &PAGODA_CODED_TABLE,
                                  rms_norm,
                                  gated_silu,
                                  add,
                                  widen,
                                  rotate,
                                  multiply_heads};

}  // namespace pagoda
