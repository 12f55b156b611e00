// A linear layer on coded weights, for any number of rows: bytes times bytes, summed exactly in a unit of depth.
//
// Few rows of input meet codes as they are laid out. Input is coded before (coded_input.h).
#pragma once

#include "coded_unpacked.h"

namespace pagoda {
namespace {

// Adds a unit to the totals of a vector of columns; `data` is where its parts are in the unit, `scale` and `minimum` those
// of the superunit.
template <class Codes, int kRows>
inline void add_packed_unit(const Coding& coding, const uint8_t* data, const uint8_t* codes, const InputUnit& input,
                            Floats scale, Floats minimum, Floats (&totals)[1][kRows]) {
    const uint8_t* columns[1] = {codes};
    Ints sums[1][kRows];
    const auto add_part = [&](int part) {
        const uint8_t* minima = data + (coding.num_parts + part) * kCodedRows;
        const Floats own[1] = {scale * read_parts(data + part * kCodedRows)};
        const Floats low[1] = {coding.has_minimum ? minimum * read_parts(minima) : minimum};
        add_scaled(coding.has_minimum, sums, input, part, own, low, totals);
    };
    start_sums(input, 0, sums);
    multiply_half<Codes>(columns, 0, input.codes, sums);
    if (coding.num_parts == 2) {
        add_part(0);
        start_sums(input, 1, sums);
    }
    multiply_half<Codes>(columns, 1, input.codes, sums);
    if (coding.num_parts > 0) return add_part(coding.num_parts - 1);
    const Floats own[1] = {scale}, low[1] = {coding.has_zeros ? scale * read_parts(data) : minimum};
    add_scaled(coding.has_minimum, sums, input, 0, own, low, totals);
}

// Of rows [row, row + kRows) and the columns of a block.
template <class Codes, int kRows>
inline void multiply_packed(const CodedCall& call, const uint8_t* stream, int64_t row,
                            Floats (&given)[kBlockVectors][1][kRows]) {
    Floats totals[kBlockVectors][1][kRows]{};  // in registers: what nobody else can see need not be stored
    constexpr int64_t kInputNbytes = unit_input_nbytes<Codes>();
    const Coding coding = call.coding;
    const int64_t units = num_units(call.depth), nbytes = number_nbytes(coding.scale);
    InputUnit input(call, 0, row, kInputNbytes);
    for (int64_t begin = 0; begin < units; begin += coding.superunit) {
        const int64_t end = begin + coding.superunit < units ? begin + coding.superunit : units;
        Floats scales[kBlockVectors], minima[kBlockVectors]{};
        for (int vector = 0; vector < kBlockVectors; vector++) {
            scales[vector] = read_scales(stream + vector * kLanes * nbytes, coding.scale);
            if (kinds_in_head(coding) == 2)
                minima[vector] = read_scales(stream + (kCodedRows + vector * kLanes) * nbytes, coding.scale);
        }
        stream += head_nbytes(coding);
        for (int64_t unit = begin; unit < end; unit++) {
            const uint8_t* codes = stream + parts_nbytes(coding);
            for (int vector = 0; vector < kBlockVectors; vector++)
                add_packed_unit<Codes>(coding, stream + vector * kLanes, codes + vector * kLanes * kStepDepth, input,
                                       scales[vector], minima[vector], totals[vector]);
            input.advance(kInputNbytes);
            stream += unit_nbytes(coding);
        }
    }
    __builtin_memcpy(given, totals, sizeof(totals));
}

template <class Codes>
void compute_packed(const CodedCall& call, const uint8_t* stream, int64_t column) {
    in_rows<kPackedRows>(0, call.rows, [&](auto some, int64_t row) {
        constexpr int kRows = decltype(some)::value;
        Floats totals[kBlockVectors][1][kRows];
        multiply_packed<Codes>(call, stream, row, totals);
        alignas(64) float results[kRows][kCodedRows];
        for (int i = 0; i < kRows; i++)
            for (int64_t vector = 0; vector < kBlockVectors; vector++)
                store(results[i] + vector * kLanes, totals[vector][0][i]);
        for (int i = 0; i < kRows; i++) write_coded(call, results[i], row + i, column);
    });
}

template <class Codes>
void compute_coded_blocks(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room) {
    const int64_t nbytes = block_nbytes(call.coding, call.depth);
    int64_t block = first_block;
    if (call.rows > kUnpackedRows)
        for (; block + kUnpackedBlocks <= last_block; block += kUnpackedBlocks)
            compute_unpacked<Codes, kUnpackedBlocks, kUnpackedJoint>(call, call.weight + block * nbytes, block * kCodedRows, room);
    for (; block < last_block; block++) {
        const uint8_t* stream = call.weight + block * nbytes;
        if (call.rows > kUnpackedRows)
            compute_unpacked<Codes, 1, 1>(call, stream, block * kCodedRows, room);
        else
            compute_packed<Codes>(call, stream, block * kCodedRows);
    }
}

// Blocks [first_block, last_block) of kCodedRows output columns.
inline void coded_linear(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room) {
    if (call.coding.has_table) return compute_coded_blocks<PackedCodes<4, true>>(call, first_block, last_block, room);
    switch (call.coding.bits) {
        case 2: return compute_coded_blocks<PackedCodes<2>>(call, first_block, last_block, room);
        case 3: return compute_coded_blocks<PackedCodes<3>>(call, first_block, last_block, room);
        case 4: return compute_coded_blocks<PackedCodes<4>>(call, first_block, last_block, room);
        case 5: return compute_coded_blocks<PackedCodes<5>>(call, first_block, last_block, room);
        case 6: return compute_coded_blocks<PackedCodes<6>>(call, first_block, last_block, room);
        default: return compute_coded_blocks<PackedCodes<8>>(call, first_block, last_block, room);
    }
}

}  // namespace
}  // namespace pagoda
