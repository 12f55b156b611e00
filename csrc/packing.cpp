// Knows rows and bytes; nothing here is on the way of a step but the rows of an embedding.
#include "packing.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "team.h"

namespace pagoda {
namespace {

int64_t num_superunits(const Coding& coding, int64_t depth) {
    return (num_units(depth) + coding.superunit - 1) / coding.superunit;
}

int64_t parts_of_unit(const Coding& coding) { return coding.has_zeros ? 1 : coding.num_parts; }

// The rows of one block, those that do not exist being zeros.
class RowsOfBlock {
  public:
    RowsOfBlock(const Coding& coding, int64_t depth)
        : units_(num_units(depth)), superunits_(num_superunits(coding, depth)), parts_(units_ * parts_of_unit(coding)),
          codes_(size_t(kCodedRows * units_ * kUnitDepth)), scales_(size_t(kCodedRows * superunits_)),
          minima_(scales_.size()), all_parts_(size_t(kCodedRows * parts_)), part_minima_(all_parts_.size()) {}

    // Zeros count as nothing: the code that stands for one, or no scale.
    void clear(const Coding& coding) {
        std::fill(codes_.begin(), codes_.end(), uint8_t(coding.has_table ? 0 : coding.zero));
        for (auto* floats : {&scales_, &minima_}) std::fill(floats->begin(), floats->end(), 0.0f);
        for (auto* bytes : {&all_parts_, &part_minima_}) std::fill(bytes->begin(), bytes->end(), int8_t(0));
    }

    CodedRow row(int64_t index, int64_t unit = 0, int64_t superunit = 0, int64_t num_parts = 0) {
        return {codes_.data() + (index * units_ + unit) * kUnitDepth,
                scales_.data() + index * superunits_ + superunit,
                minima_.data() + index * superunits_ + superunit,
                all_parts_.data() + index * parts_ + unit * num_parts,
                part_minima_.data() + index * parts_ + unit * num_parts};
    }

  private:
    int64_t units_;
    int64_t superunits_;
    int64_t parts_;
    std::vector<uint8_t> codes_;
    std::vector<float> scales_;
    std::vector<float> minima_;
    std::vector<int8_t> all_parts_;
    std::vector<int8_t> part_minima_;
};

// The codes of a step of a row, a byte each.
typedef uint32_t Word;

constexpr Word each_byte(int value) { return Word(value) * 0x01010101; }

Word load_word(const uint8_t* data) {
    Word word;
    __builtin_memcpy(&word, data, sizeof(word));
    return word;
}

void store_word(uint8_t* data, Word word) { __builtin_memcpy(data, &word, sizeof(word)); }

// Where the bits of codes lie in a unit: `width` of them from `shift` on in the bytes at `offset`, those of the codes that
// begin at `from`.
struct Place {
    int64_t offset;
    int shift;
    int width;
    int from;
};

constexpr int kMostPlaces = 2;

constexpr int places_of(int bits, int64_t step, Place* places) {
    const int half = int(step / kHalfSteps), in_half = int(step % kHalfSteps);
    if (bits == 8) {
        places[0] = {step * kPlaneNbytes, 0, 8, 0};
        return 1;
    }
    const Place pair{half * kPlaneNbytes, in_half * 2, 2, 0};
    const Place nibble{in_half * kPlaneNbytes, half * 4, 4, 0};
    places[0] = bits < 4 ? pair : nibble;
    const int64_t behind = (bits < 4 ? 2 : 4) * kPlaneNbytes;
    if (bits == 6) places[1] = {behind + pair.offset, pair.shift, 2, 4};
    if (bits == 3 || bits == 5) places[1] = {behind, int(step), 1, bits - 1};
    return bits == 2 || bits == 4 ? 1 : 2;
}

// Calls visit(step, place) for the places of codes of `bits` bits; with a number that the compiler knows all are known.
template <class Visit>
inline void visit_places(int bits, Visit visit) {
#pragma GCC unroll 8
    for (int64_t step = 0; step < kUnitSteps; step++) {
        Place places[kMostPlaces]{};
        const int count = places_of(bits, step, places);
#pragma GCC unroll 2
        for (int i = 0; i < count; i++) visit(step, places[i]);
    }
}

template <class Function>
inline void with_bits(int bits, Function function) {
    switch (bits) {
        case 2: return function(std::integral_constant<int, 2>());
        case 3: return function(std::integral_constant<int, 3>());
        case 4: return function(std::integral_constant<int, 4>());
        case 5: return function(std::integral_constant<int, 5>());
        case 6: return function(std::integral_constant<int, 6>());
        default: return function(std::integral_constant<int, 8>());
    }
}

// `out` has zeros.
void write_codes(const Coding& coding, const uint8_t* codes, int64_t row, uint8_t* out) {
    with_bits(coding.bits, [&](auto bits) {
        visit_places(decltype(bits)::value, [&](int64_t step, const Place& place) {
            uint8_t* bytes = out + place.offset + row * kStepDepth;
            const Word some = load_word(codes + step * kStepDepth) >> place.from & each_byte((1 << place.width) - 1);
            store_word(bytes, load_word(bytes) | some << place.shift);
        });
    });
}

void read_codes(const Coding& coding, const uint8_t* data, int64_t row, uint8_t* codes) {
    __builtin_memset(codes, 0, size_t(kUnitDepth));
    with_bits(coding.bits, [&](auto bits) {
        visit_places(decltype(bits)::value, [&](int64_t step, const Place& place) {
            const Word some = load_word(data + place.offset + row * kStepDepth) >> place.shift;
            uint8_t* own = codes + step * kStepDepth;
            store_word(own, load_word(own) | (some & each_byte((1 << place.width) - 1)) << place.from);
        });
    });
}

void write_block(const Coding& coding, RowsOfBlock& rows, int64_t depth, uint8_t* out) {
    const int64_t units = num_units(depth), nbytes = number_nbytes(coding.scale);
    __builtin_memset(out, 0, size_t(block_nbytes(coding, depth)));
    for (int64_t unit = 0; unit < units; unit++) {
        if (unit % coding.superunit == 0) {
            for (int64_t row = 0; row < kCodedRows; row++) {
                const CodedRow own = rows.row(row, 0, unit / coding.superunit);
                write_row(out + row * nbytes, coding.scale, own.scales, 1);
                if (kinds_in_head(coding) == 2) write_row(out + (kCodedRows + row) * nbytes, coding.scale, own.minima, 1);
            }
            out += head_nbytes(coding);
        }
        for (int64_t row = 0; row < kCodedRows; row++) {
            const CodedRow own = rows.row(row, unit, 0, parts_of_unit(coding));
            if (coding.has_zeros) out[row] = uint8_t(own.part_minima[0]);
            for (int64_t part = 0; part < coding.num_parts; part++) {
                out[part * kCodedRows + row] = uint8_t(own.parts[part]);
                if (coding.has_minimum)
                    out[(coding.num_parts + part) * kCodedRows + row] = uint8_t(own.part_minima[part]);
            }
            write_codes(coding, own.codes, row, out + parts_nbytes(coding));
        }
        out += unit_nbytes(coding);
    }
}

// Calls read(row, place) for every row and writes the blocks they make.
template <class Read>
void pack_blocks(const Coding& coding, int64_t rows, int64_t depth, uint8_t* out, int num_threads, const Read& read) {
    const int64_t nbytes = block_nbytes(coding, depth), num_blocks = (rows + kCodedRows - 1) / kCodedRows;
    in_parts(num_threads, [&](int part) {
        RowsOfBlock block(coding, depth);
        for (int64_t index = num_blocks * part / num_threads; index < num_blocks * (part + 1) / num_threads; index++) {
            block.clear(coding);
            for (int64_t row = 0; row < kCodedRows && index * kCodedRows + row < rows; row++)
                read(index * kCodedRows + row, row, block);
            write_block(coding, block, depth, out + index * nbytes);
        }
    });
}

// What a weight is: in fp32, a product and then a difference, each rounded, as those who write the files reckon.
void decode_row(const DecodeCall& call, int64_t number, float* values) {
    const Coding& coding = call.coding;
    const int64_t nbytes = number_nbytes(coding.scale), row = number % kCodedRows, units = num_units(call.depth);
    const uint8_t* data = call.weight + number / kCodedRows * block_nbytes(coding, call.depth);
    float scale = 0, minimum = 0;
    for (int64_t unit = 0; unit < units; unit++) {
        if (unit % coding.superunit == 0) {
            read_row(&scale, data + row * nbytes, coding.scale, 1);
            if (kinds_in_head(coding) == 2) read_row(&minimum, data + (kCodedRows + row) * nbytes, coding.scale, 1);
            data += head_nbytes(coding);
        }
        if (coding.has_zeros) minimum = scale * float(int8_t(data[row]));
        uint8_t codes[kUnitDepth];
        read_codes(coding, data + parts_nbytes(coding), row, codes);
        for (int64_t i = 0; i < kUnitDepth; i++) {
            float own = scale, low = minimum;
            if (coding.num_parts > 0) {
                const int64_t part = i * coding.num_parts / kUnitDepth;
                own *= float(int8_t(data[part * kCodedRows + row]));
                if (coding.has_minimum) low *= float(int8_t(data[(coding.num_parts + part) * kCodedRows + row]));
            }
            const int code = coding.has_table ? kCodeTable[codes[i]] : codes[i];
            const float product = own * float(code - coding.zero);
            values[unit * kUnitDepth + i] = coding.has_minimum ? product - low : product;
        }
        data += unit_nbytes(coding);
    }
}

}  // namespace

void pack_gguf(GgufType type, const uint8_t* blocks, int64_t row_nbytes, int64_t rows, int64_t depth, uint8_t* out,
               int num_threads) {
    const gguf::Form form = gguf::form_of(type);
    const int64_t count = depth / form.depth, block_units = form.depth / kUnitDepth;
    pack_blocks(form.coding, rows, depth, out, num_threads, [&](int64_t number, int64_t row, RowsOfBlock& block) {
        for (int64_t i = 0; i < count; i++)
            gguf::read_block(type, blocks + number * row_nbytes + i * form.nbytes, form.coding,
                             block.row(row, i * block_units, i, form.coding.num_parts));
    });
}

void pack_planes(const PlaneCall& call, int num_threads) {
    const Coding& coding = call.coding;
    const int64_t superunits = num_superunits(coding, call.depth);
    pack_blocks(coding, call.rows, call.depth, call.out, num_threads, [&](int64_t number, int64_t row, RowsOfBlock& block) {
        const CodedRow own = block.row(row);
        std::copy_n(call.codes + number * call.depth, call.depth, own.codes);
        std::copy_n(call.scales + number * superunits, superunits, own.scales);
        if (call.minima) std::copy_n(call.minima + number * superunits, superunits, own.minima);
        for (int64_t unit = 0; call.zeros && unit < num_units(call.depth); unit++)
            own.part_minima[unit] = call.zeros[number * superunits + unit / coding.superunit];
    });
}

void decode_rows(const DecodeCall& call, int num_threads) {
    for (int64_t i = 0; i < call.count; i++)
        if (call.numbers[i] < 0 || call.numbers[i] >= call.rows)
            throw std::out_of_range("a matrix of " + std::to_string(call.rows) + " rows has no row " +
                                    std::to_string(call.numbers[i]));
    const int team = int(std::clamp<int64_t>(call.count, 1, num_threads));
    in_parts(team, [&](int part) {
        std::vector<float> values(size_t(num_units(call.depth) * kUnitDepth));
        for (int64_t i = call.count * part / team; i < call.count * (part + 1) / team; i++) {
            decode_row(call, call.numbers[i], values.data());
            write_row(call.out + i * call.depth * number_nbytes(call.number), call.number, values.data(), call.depth);
        }
    });
}

}  // namespace pagoda
