// A linear layer on coded weights, for any number of rows: bytes times bytes, summed exactly in a unit of depth.
//
// Few rows of input meet codes as they are laid out. Input is coded before (coded_input.h).
#pragma once

#include "coded_unpacked.h"

namespace pagoda {
namespace {

// Blocks that meet a word of input at once, where so few rows leave registers for them. They are far apart, each in a stream
// of its own: processors fetch ahead of what is read in order, and of what jumps from block to block not enough.
constexpr int kPackedJoint = kMultipliesWords ? 2 : 1;
constexpr int kJointRows = 2;

// Adds a unit to the totals of a vector of columns of each of kJoint blocks; `data` is where its parts are in the unit,
// `scale` and `minimum` those of the superunit.
template <class Codes, int kJoint, int kRows>
inline void add_packed_unit(const Coding& coding, const uint8_t* const (&data)[kJoint], const uint8_t* const (&codes)[kJoint],
                            const InputUnit& input, const Floats (&scale)[kJoint], const Floats (&minimum)[kJoint],
                            Floats (&totals)[kJoint][kRows]) {
    Ints sums[kJoint][kRows];
    const auto add_part = [&](int part) {
        Floats own[kJoint], low[kJoint];
        for (int i = 0; i < kJoint; i++) {
            const uint8_t* minima = data[i] + (coding.num_parts + part) * kCodedRows;
            own[i] = scale[i] * read_parts(data[i] + part * kCodedRows);
            low[i] = coding.has_minimum ? minimum[i] * read_parts(minima) : minimum[i];
        }
        add_scaled(coding.has_minimum, sums, input, part, own, low, totals);
    };
    start_sums(input, 0, sums);
    multiply_half<Codes>(codes, 0, input.codes, sums);
    if (coding.num_parts == 2) {
        add_part(0);
        start_sums(input, 1, sums);
    }
    multiply_half<Codes>(codes, 1, input.codes, sums);
    if (coding.num_parts > 0) return add_part(coding.num_parts - 1);
    Floats low[kJoint];
    for (int i = 0; i < kJoint; i++) low[i] = coding.has_zeros ? scale[i] * read_parts(data[i]) : minimum[i];
    add_scaled(coding.has_minimum, sums, input, 0, scale, low, totals);
}

// Of rows [row, row + kRows) and the columns of kJoint blocks, so many bytes apart, the first of which is at `stream`.
template <class Codes, int kJoint, int kRows>
inline void multiply_packed(const CodedCall& call, const uint8_t* stream, int64_t apart, int64_t row,
                            Floats (&given)[kBlockVectors][kJoint][kRows]) {
    Floats totals[kBlockVectors][kJoint][kRows]{};  // in registers: what nobody else can see need not be stored
    constexpr int64_t kInputNbytes = unit_input_nbytes<Codes>();
    const Coding coding = call.coding;
    const int64_t units = num_units(call.depth), nbytes = number_nbytes(coding.scale);
    InputUnit input(call, 0, row, kInputNbytes);
    for (int64_t begin = 0; begin < units; begin += coding.superunit) {
        const int64_t end = begin + coding.superunit < units ? begin + coding.superunit : units;
        Floats scales[kBlockVectors][kJoint], minima[kBlockVectors][kJoint]{};
        for (int vector = 0; vector < kBlockVectors; vector++)
            for (int i = 0; i < kJoint; i++) {
                const uint8_t* head = stream + i * apart + vector * kLanes * nbytes;
                scales[vector][i] = read_scales(head, coding.scale);
                if (kinds_in_head(coding) == 2)
                    minima[vector][i] = read_scales(head + kCodedRows * nbytes, coding.scale);
            }
        stream += head_nbytes(coding);
        for (int64_t unit = begin; unit < end; unit++) {
            for (int vector = 0; vector < kBlockVectors; vector++) {
                const uint8_t *data[kJoint], *codes[kJoint];
                for (int i = 0; i < kJoint; i++) {
                    data[i] = stream + i * apart + vector * kLanes;
                    codes[i] = stream + i * apart + parts_nbytes(coding) + vector * kLanes * kStepDepth;
                }
                add_packed_unit<Codes>(coding, data, codes, input, scales[vector], minima[vector], totals[vector]);
            }
            input.advance(kInputNbytes);
            stream += unit_nbytes(coding);
        }
    }
    __builtin_memcpy(given, totals, sizeof(totals));
}

// Of all rows and the columns of kJoint blocks: `block`, and others so many blocks apart.
template <class Codes, int kJoint, int kMostRows>
void compute_packed(const CodedCall& call, int64_t block, int64_t apart) {
    const int64_t nbytes = block_nbytes(call.coding, call.depth);
    in_rows<kMostRows>(0, call.rows, [&](auto some, int64_t row) {
        constexpr int kRows = decltype(some)::value;
        Floats totals[kBlockVectors][kJoint][kRows];
        multiply_packed<Codes>(call, call.weight + block * nbytes, apart * nbytes, row, totals);
        for (int joint = 0; joint < kJoint; joint++)
            for (int i = 0; i < kRows; i++) {
                alignas(64) float results[kCodedRows];
                for (int64_t vector = 0; vector < kBlockVectors; vector++)
                    store(results + vector * kLanes, totals[vector][joint][i]);
                write_coded(call, results, row + i, (block + joint * apart) * kCodedRows);
            }
    });
}

template <class Codes>
void compute_coded_blocks(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room) {
    const int64_t nbytes = block_nbytes(call.coding, call.depth);
    int64_t block = first_block;
    if (call.rows > kUnpackedRows) {
        for (; block + kUnpackedBlocks <= last_block; block += kUnpackedBlocks)
            compute_unpacked<Codes, kUnpackedBlocks, kUnpackedJoint>(call, call.weight + block * nbytes, block * kCodedRows, room);
        for (; block < last_block; block++)
            compute_unpacked<Codes, 1, 1>(call, call.weight + block * nbytes, block * kCodedRows, room);
    } else if (call.rows < 2 * kJointRows) {
        const int64_t apart = (last_block - first_block) / kPackedJoint;
        for (; block < first_block + apart; block++) compute_packed<Codes, kPackedJoint, kJointRows>(call, block, apart);
        block = first_block + apart * kPackedJoint;
    }
    for (; block < last_block; block++) compute_packed<Codes, 1, kPackedRows>(call, block, 0);
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
