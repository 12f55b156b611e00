// Weights of files laid out as coding.h says, and read back number by number.
#pragma once

#include "gguf_blocks.h"

namespace pagoda {

// Rows of a matrix as arrays: codes [rows, depth], scales, and minima or zeros [rows, superunits]. There are no parts, and
// what the coding does not have is null.
struct PlaneCall {
    Coding coding;
    const uint8_t* codes;
    const float* scales;
    const float* minima;
    const int8_t* zeros;
    int64_t rows;
    int64_t depth;
    uint8_t* out;
};

struct DecodeCall {
    Coding coding;
    const uint8_t* weight;
    int64_t rows;
    int64_t depth;
    const int64_t* numbers;  // of the rows that are wanted
    int64_t count;
    uint8_t* out;  // [count, depth]
    Number number;
};

// `blocks` [rows, those of a row]; `out` has room for whole blocks of rows.
void pack_gguf(GgufType type, const uint8_t* blocks, int64_t row_nbytes, int64_t rows, int64_t depth, uint8_t* out,
               int num_threads);
void pack_planes(const PlaneCall& call, int num_threads);
// Throws std::out_of_range if there is no such row.
void decode_rows(const DecodeCall& call, int num_threads);

}  // namespace pagoda
