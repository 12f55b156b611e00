// Products of coded weights with many rows of input: codes and scales are unpacked once for all of them.
//
// Stretch by stretch of depth: what is unpacked of one stays in the caches, and what rows sum to lies in memory in between.
#pragma once

#include "coded_sums.h"

namespace pagoda {
namespace {

constexpr int64_t kUnitPlainNbytes = kPlaneNbytes * kUnitSteps;

// Codes of a byte each, as products of one kind take them: where four products of bytes are added up, one kind is all.
template <class Codes>
using Unpacked =
    PlainCodes<(kMultipliesWords || Codes::kMost > 63) ? 255 : (Codes::kMost > 31) ? 63 : 31>;

// Units [begin, end) of kBlocks blocks of columns, from the begin of a superunit on, as they lie in `room`: codes [units,
// blocks, kUnitPlainNbytes], scales [units, halves, scale and minimum, blocks, kCodedRows]. Halves are one if they share.
template <class Codes, int kBlocks>
void unpack(const CodedCall& call, const uint8_t* stream, int64_t begin, int64_t end, const CodedRoom& room) {
    const Coding& coding = call.coding;
    const int64_t nbytes = number_nbytes(coding.scale), halves = coding.num_parts == 2 ? 2 : 1;
    const int64_t kinds = kinds_of_scales(coding);
    for (int64_t block = 0; block < kBlocks; block++) {
        const uint8_t *data = stream + block * block_nbytes(coding, call.depth), *head = data;
        for (int64_t unit = begin; unit < end; unit++) {
            if (unit % coding.superunit == 0) {
                head = data;
                data += head_nbytes(coding);
            }
            uint8_t* codes = room.codes + ((unit - begin) * kBlocks + block) * kUnitPlainNbytes;
            float* scales = room.scales + ((unit - begin) * halves * kinds * kBlocks + block) * kCodedRows;
            for (int64_t lane = 0; lane < kCodedRows; lane += kLanes) {
                for (int64_t step = 0; step < kUnitSteps; step++) {
                    const Shorts some = Codes::step(data + parts_nbytes(coding) + lane * kStepDepth, step);
                    store_plane(codes + step * kPlaneNbytes + lane * kStepDepth, some);
                }
                for (int64_t kind = 0; kind < kinds; kind++) {
                    const bool is_of_zeros = kind == 1 && coding.has_zeros;
                    const int64_t place = (is_of_zeros ? 0 : kind) * kCodedRows + lane;
                    const Floats scale = read_scales(head + place * nbytes, coding.scale);
                    for (int64_t half = 0; half < halves; half++) {
                        const uint8_t* parts = data + (kind * coding.num_parts + half) * kCodedRows + lane;
                        store(scales + (half * kinds + kind) * kBlocks * kCodedRows + lane,
                              coding.num_parts > 0 || is_of_zeros ? scale * read_parts(parts) : scale);
                    }
                }
            }
            data += unit_nbytes(coding);
        }
    }
}

// Adds units [begin, end), which `room` has, to the totals there of rows [row, row + kRows) and of all columns of kBlocks
// blocks, kJoint vectors of which meet a unit at once.
template <class Codes, int kBlocks, int kJoint, int kHalves, bool kHasMinimum, int kRows>
inline void add_units(const CodedCall& call, int64_t begin, int64_t end, int64_t row, const CodedRoom& room) {
    constexpr int kVectors = kBlocks * kBlockVectors, kGroups = kVectors / kJoint;
    constexpr int64_t kInputNbytes = unit_input_nbytes<Codes>(), kColumns = kBlocks * kCodedRows;
    float* const places = room.totals + row * kColumns;
    Floats totals[kGroups][kJoint][kRows]{};
    if (begin > 0)
        for (int vector = 0; vector < kVectors; vector++)
            for (int i = 0; i < kRows; i++)
                totals[vector / kJoint][vector % kJoint][i] = load(places + i * kColumns + vector * kLanes);
    InputUnit input(call, begin, row, kInputNbytes);
    const uint8_t* codes = room.codes;
    const float* scales = room.scales;
    for (int64_t unit = begin; unit < end; unit++) {
        for (int group = 0; group < kGroups; group++) {
            const uint8_t* columns[kJoint];
            for (int i = 0; i < kJoint; i++) {
                const int64_t vector = group * kJoint + i;
                columns[i] = codes + vector / kBlockVectors * kUnitPlainNbytes + vector % kBlockVectors * kLanes * kStepDepth;
            }
            const float* own = scales + group * kJoint * kLanes;
            Ints sums[kJoint][kRows];
            for (int half = 0; half < 2; half++) {
                if (half < kHalves) start_sums(input, half, sums);
                multiply_half<Codes>(columns, half, input.codes, sums);
                if (half < 2 - kHalves) continue;
                const int place = kHalves - 1 < half ? kHalves - 1 : half;
                Floats scale[kJoint], minimum[kJoint]{};
                for (int i = 0; i < kJoint; i++) {
                    const float* at = own + place * (kHasMinimum ? 2 : 1) * kColumns + i * kLanes;
                    scale[i] = load(at);
                    if (kHasMinimum) minimum[i] = load(at + kColumns);
                }
                add_scaled(kHasMinimum, sums, input, place, scale, minimum, totals[group]);
            }
        }
        input.advance(kInputNbytes);
        codes += kBlocks * kUnitPlainNbytes;
        scales += kHalves * (kHasMinimum ? 2 : 1) * kColumns;
    }
    for (int vector = 0; vector < kVectors; vector++)
        for (int i = 0; i < kRows; i++)
            store(places + i * kColumns + vector * kLanes, totals[vector / kJoint][vector % kJoint][i]);
}

template <class Codes, int kBlocks, int kJoint, int kHalves, bool kHasMinimum>
void add_all_rows(const CodedCall& call, int64_t begin, int64_t end, const CodedRoom& room) {
    in_rows<kTileRows>(0, call.rows, [&](auto some, int64_t row) {
        add_units<Codes, kBlocks, kJoint, kHalves, kHasMinimum, decltype(some)::value>(call, begin, end, row, room);
    });
}

// The columns of kBlocks blocks, of which `stream` is the first.
template <class Codes, int kBlocks, int kJoint>
void compute_unpacked(const CodedCall& call, const uint8_t* stream, int64_t column, const CodedRoom& room) {
    const Coding& coding = call.coding;
    const int64_t units = num_units(call.depth), at_once = stretch_units(coding);
    for (int64_t begin = 0; begin < units; begin += at_once) {
        const int64_t end = begin + at_once < units ? begin + at_once : units;
        unpack<Codes, kBlocks>(call, stream, begin, end, room);
        stream += stretch_nbytes(coding, end - begin);
        const auto add_with = [&](auto halves, auto has_minimum) {
            constexpr int kHalves = decltype(halves)::value;
            constexpr bool kHasMinimum = decltype(has_minimum)::value;
            add_all_rows<Unpacked<Codes>, kBlocks, kJoint, kHalves, kHasMinimum>(call, begin, end, room);
        };
        const auto add_in = [&](auto halves) {
            coding.has_minimum ? add_with(halves, std::true_type()) : add_with(halves, std::false_type());
        };
        coding.num_parts == 2 ? add_in(std::integral_constant<int, 2>()) : add_in(std::integral_constant<int, 1>());
    }
    for (int64_t row = 0; row < call.rows; row++)
        for (int64_t block = 0; block < kBlocks; block++)
            write_coded(call, room.totals + (row * kBlocks + block) * kCodedRows, row, column + block * kCodedRows);
}

}  // namespace
}  // namespace pagoda
