// How a matrix of weights is coded and laid out, and what a product with it is given.
//
// Plain data, as attention.h: every translation unit includes it. A weight is (scale * code) - minimum, where codes are
// unsigned and the scale, with `zero`, takes the place of signed ones. Rows of a matrix are the outputs of a layer.
#pragma once

#include "attention.h"

namespace pagoda {

// Rows lie in blocks, depth in units; a step is as much depth as a 32-bit word of codes covers.
constexpr int64_t kCodedRows = 16;
constexpr int64_t kUnitDepth = 32;
constexpr int64_t kStepDepth = 4;
constexpr int64_t kUnitSteps = kUnitDepth / kStepDepth;
constexpr int64_t kHalfSteps = kUnitSteps / 2;
constexpr int64_t kPlaneNbytes = kCodedRows * kStepDepth;  // a bit plane of a unit, or a byte of each code of a step

// A block of rows is a stream of superunits: the scale of each row, its minimum if it has one, and `superunit` units.
// A unit is `num_parts` parts of a scale of a byte for each row, as many of the minimum, and the codes. Part p of two is
// for half p of the unit: its steps [4 p, 4 p + 4). Without parts the superunit's scale is that of its weights. With zeros
// a superunit has no minimum: that of a unit is the scale times a byte, which is all the parts that there are.
//
// Byte 4 r + k of a plane is that of row r and the k-th number of a step. Codes of 8 bits are a plane for each step. Of
// others, nibbles lie in 4 planes: that of step s in the low half of plane s, that of step s + 4 in the high one. Pairs
// of bits lie in 2 planes: that of step s in plane s / 4, from bit 2 (s % 4) on. Single bits lie in 1 plane, that of step
// s in bit s. Codes of 4 bits are nibbles, of 5 and 6 nibbles and then the high bits, of 2 pairs, of 3 pairs and a bit.
struct Coding {
    int bits;
    int zero;
    int num_parts;
    bool has_minimum;
    bool has_table;      // codes are places in kCodeTable
    int64_t superunit;
    Number scale;        // of superunits: fp16 or fp32
    bool has_zeros;      // besides `has_minimum`
};

static inline bool operator==(const Coding& a, const Coding& b) {
    return a.bits == b.bits && a.zero == b.zero && a.num_parts == b.num_parts && a.has_minimum == b.has_minimum &&
           a.has_table == b.has_table && a.superunit == b.superunit && a.scale == b.scale && a.has_zeros == b.has_zeros;
}

// IQ4_NL of GGUF, raised by 128: `zero` takes that away.
constexpr uint8_t kCodeTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// Scales, and minima beside them: of a superunit, and of a part.
static inline int64_t kinds_in_head(const Coding& coding) { return coding.has_minimum && !coding.has_zeros ? 2 : 1; }
static inline int64_t kinds_of_scales(const Coding& coding) { return coding.has_minimum ? 2 : 1; }

static inline int64_t codes_nbytes(const Coding& coding) { return kPlaneNbytes * coding.bits; }

static inline int64_t parts_nbytes(const Coding& coding) {
    return (coding.has_zeros ? 1 : coding.num_parts * kinds_of_scales(coding)) * kCodedRows;
}

static inline int64_t unit_nbytes(const Coding& coding) { return parts_nbytes(coding) + codes_nbytes(coding); }

static inline int64_t head_nbytes(const Coding& coding) {
    return kinds_in_head(coding) * kCodedRows * number_nbytes(coding.scale);
}

static inline int64_t num_units(int64_t depth) { return (depth + kUnitDepth - 1) / kUnitDepth; }

// Of so many units of a block of rows from the begin of a superunit on; the last superunit ends with the depth.
static inline int64_t stretch_nbytes(const Coding& coding, int64_t units) {
    const int64_t superunits = (units + coding.superunit - 1) / coding.superunit;
    return superunits * head_nbytes(coding) + units * unit_nbytes(coding);
}

static inline int64_t block_nbytes(const Coding& coding, int64_t depth) {
    return stretch_nbytes(coding, num_units(depth));
}

// Units of whole superunits that are unpacked at a time: few enough that their codes, a byte each, stay in the caches.
constexpr int64_t kStretchUnits = 32;

static inline int64_t stretch_units(const Coding& coding) {
    return coding.superunit < kStretchUnits ? kStretchUnits / coding.superunit * coding.superunit : coding.superunit;
}

// Rows of input as codes of 8 bits, with a scale for each unit: |x| is at most 127 scales. Rows lie in groups that meet
// weights together: kernels say how many make one.
struct CodedRows {
    int8_t* codes;       // [groups, units, rows of a group, kUnitDepth], or as many of 16 bits
    float* scales;       // [groups, units, rows of a group]
    float* terms;        // [groups, units, 2, rows of a group]: what minima are multiplied by, see `code_rows`
    int32_t* starts;     // [groups, units, 2, rows of a group]: what sums of products begin with
};

// Of a group.
constexpr int64_t kMostGroupRows = 8;

// Blocks that are unpacked at a time.
constexpr int64_t kMostUnpackedBlocks = 2;

// Scales and minima of a unit of a row, at most: of two halves.
constexpr int64_t kMostUnitScales = 4;

// Memory of a thread: a stretch of unpacked blocks (coded_unpacked.h), codes a byte each, and what all rows sum to, for
// their columns.
struct CodedRoom {
    uint8_t* codes;
    float* scales;
    float* totals;
};

// out [rows, columns] = input [rows, depth] x weight^T + bias, input, bias and out of one type.
struct CodedCall {
    Coding coding;
    const uint8_t* input;
    const uint8_t* weight;
    const uint8_t* bias;  // [columns], or null
    uint8_t* out;
    int64_t rows;
    int64_t columns;
    int64_t depth;
    Number number;
    CodedRows coded;
};

// Each row of `linear` times some of as many matrices, which follow one another, each in whole blocks of rows: its input
// is [rows, depth], its bias [matrices, columns], its out [rows, per_row, columns].
struct ExpertsCall {
    CodedCall linear;
    const int64_t* experts;  // [rows, per_row]: the matrices that a row meets
    int64_t per_row;
    int64_t num_experts;
};

// Rows of input that meet codes of a head at a time, at most.
constexpr int64_t kMostHeadRows = 4;

// out [rows, heads, columns] = input [rows, heads, depth] x rows of a coded matrix, [depth, columns] of each head: along
// its rows, where a linear layer multiplies by what a row has. Those of the first head begin at `weight`, and each next
// one's `head_blocks` blocks later; depth is whole blocks.
struct CodedHeadsCall {
    Coding coding;
    Rows input;
    Rows out;
    const uint8_t* weight;
    int64_t head_blocks;
    int64_t num_rows;
    int64_t depth;
    int64_t columns;
};

}  // namespace pagoda
