// Writes packed rows of keys and values into pages, in the word order of `formats/words.py`.
//
// Moves and rounds numbers; knows no attention and needs no instruction set.
#include <algorithm>
#include <vector>

#include "codes.h"
#include "hadamard.h"
#include "places.h"
#include "plan.h"
#include "run.h"
#include "team.h"

namespace pagoda {
namespace {

typedef uint32_t Word __attribute__((may_alias));

// Below this many rows x heads waking a second thread costs more than it saves.
constexpr int64_t kMinimumParallelRows = 64;

// Where the token of one packed row goes, and whose it is; `index` is that of its page in the sequence.
struct Place {
    int64_t page;
    int64_t offset;
    int64_t sequence;
    int64_t index;
};

std::vector<Place> find_places(const Tables& tables, const Pages& pages) {
    std::vector<Place> places;
    for (int64_t sequence = 0; sequence < tables.num_sequences; sequence++) {
        const int32_t* table = tables.page_indices + tables.page_starts[sequence];
        const int64_t past = past_tokens(tables, sequence), length = tables.context_lengths[sequence];
        if (!tables.slots && past < length) check_pages(tables, pages, sequence, past, length);
        for (int64_t token = 0; token < new_tokens(tables, sequence); token++) {
            const int64_t slot = tables.slots ? slot_of(tables, sequence, token) : past + token;
            const int64_t index = slot / pages.page_tokens;
            if (tables.slots) check_pages(tables, pages, sequence, slot, slot + 1);
            places.push_back({table[index], slot % pages.page_tokens, sequence, index});
        }
    }
    return places;
}

// Words of a row go down a column of the plane.
void write_key(uint8_t* plane, const Pages& pages, int64_t offset, const uint8_t* row) {
    const int64_t num_words = pages.key.width * number_nbytes(pages.number) / 4;
    const Word* words = reinterpret_cast<const Word*>(row);
    Word* column = reinterpret_cast<Word*>(plane) + offset;
    for (int64_t word = 0; word < num_words; word++) column[word * pages.page_tokens] = words[word];
}

// Numbers of a row go side by side, each into its half of a word if a word holds two tokens.
void write_value(uint8_t* plane, const Pages& pages, int64_t offset, const uint8_t* row) {
    const int64_t width = pages.value.width;
    if (pages.number == Number::fp32) {
        __builtin_memcpy(plane + offset * width * 4, row, size_t(width) * 4);
        return;
    }
    const uint16_t* numbers = reinterpret_cast<const uint16_t*>(row);
    uint16_t* halves = reinterpret_cast<uint16_t*>(plane + offset / 2 * width * 4) + offset % 2;
    for (int64_t channel = 0; channel < width; channel++) halves[2 * channel] = numbers[channel];
}

// Codes of a row, a byte each or two: words of four go down a column.
void write_key_codes(uint8_t* plane, const Pages& pages, int64_t offset, const uint8_t* codes) {
    const int64_t num_words = code_nbytes(pages.key.encoding, pages.key.width) / kWordCodes;
    for (int64_t word = 0; word < num_words; word++)
        __builtin_memcpy(plane + (word * pages.page_tokens + offset) * kWordCodes, codes + word * kWordCodes, kWordCodes);
}

// Each byte goes into its place among those of four tokens.
void write_value_codes(uint8_t* plane, const Pages& pages, int64_t offset, const uint8_t* codes) {
    const int64_t count = code_nbytes(pages.value.encoding, pages.value.width);
    uint8_t* words = plane + offset / kWordCodes * count * kWordCodes + offset % kWordCodes;
    for (int64_t index = 0; index < count; index++) words[index * kWordCodes] = codes[index];
}

// What is kept of a key, once its constants are taken off.
void take_off(float* key, const Pages& pages, int64_t head, int64_t page) {
    const KeyConstants& constants = pages.constants;
    for (int64_t i = 0; i < constants.num_pairs; i++) {
        const BasedPair pair = based_pair(constants, head, i);
        const float cosine = pair.cosines[page], sine = pair.sines[page];
        key[pair.first] -= pair.base_first * cosine - pair.base_second * sine;
        key[pair.second] -= pair.base_second * cosine + pair.base_first * sine;
    }
    const float* scales = constants.scales + head * pages.key.width;
    for (int64_t channel = 0; channel < pages.key.width; channel++) key[channel] /= scales[channel];
}

class Writer {
  public:
    explicit Writer(const StoreCall& call)
        : call_(call),
          numbers_(size_t(call.pages.key.width + call.pages.value.width)),
          encoded_(numbers_.size()) {}

    void write(int64_t row, int64_t head, const Place& place) {
        const Pages& pages = call_.pages;
        write_plane(call_.key, row, head, place, pages.key, write_key, write_key_codes);
        if (!pages.values_in_keys)
            write_plane(call_.value, row, head, place, pages.value, write_value, write_value_codes);
    }

  private:
    typedef void (*WriteRow)(uint8_t* plane, const Pages& pages, int64_t offset, const uint8_t* row);

    void write_plane(const Rows& rows, int64_t row, int64_t head, const Place& place, const Plane& plane,
                     WriteRow write_numbers, WriteRow write_codes) {
        const Pages& pages = call_.pages;
        const uint8_t* source =
            rows.data + (row * rows.row_stride + head * rows.head_stride) * number_nbytes(rows.number);
        uint8_t* target = plane_of(pages, plane, own_cell(pages, place.page, head));
        if (plane.encoding == Encoding::none) {
            const uint8_t* numbers = convert(source, rows.number, plane.width);
            if (!is_finite_row(numbers, pages.number, plane.width)) mark(place);
            return write_numbers(target, pages, place.offset, numbers);
        }
        read_row(numbers_.data(), source, rows.number, plane.width);
        if (pages.constants.scales && &plane == &pages.key) take_off(numbers_.data(), pages, head, place.index);
        hadamard(numbers_.data(), plane);
        const Bf16 scale = scale_of_row(numbers_.data(), plane);
        if (scale == kNaN) {
            mark(place);
            std::fill(numbers_.begin(), numbers_.end(), 0.0f);
        }
        const float divisor = scale == kNaN ? 1.0f : float_of_bf16(scale);
        uint8_t *codes = reinterpret_cast<uint8_t*>(encoded_.data()), *levels = codes + plane.width;
        if (plane.encoding == Encoding::int4)
            encode_groups(codes, levels, numbers_.data(), plane, divisor);
        else
            encode_row(codes, numbers_.data(), plane.width, plane.encoding, divisor);
        write_codes(target, pages, place.offset, codes);
        target += pages.page_tokens * code_nbytes(plane.encoding, plane.width);
        reinterpret_cast<Bf16*>(target)[place.offset] = scale;
        target += pages.page_tokens * kScaleNbytes + place.offset;
        for (int64_t group = 0; group < num_groups(plane); group++) target[group * pages.page_tokens] = levels[group];
    }

    void mark(const Place& place) {
        if (call_.finite) __atomic_store_n(call_.finite + place.sequence, uint8_t(0), __ATOMIC_RELAXED);
    }

    // The numbers of one row in the type of the pages; valid until the next call.
    const uint8_t* convert(const uint8_t* source, Number number, int64_t width) {
        if (number == call_.pages.number && reinterpret_cast<uintptr_t>(source) % 4 == 0) return source;
        uint8_t* converted = reinterpret_cast<uint8_t*>(encoded_.data());
        read_row(numbers_.data(), source, number, width);
        write_row(converted, call_.pages.number, numbers_.data(), width);
        return converted;
    }

    const StoreCall& call_;
    std::vector<float> numbers_;
    std::vector<float> encoded_;
};

}  // namespace

void store(const StoreCall& call, int64_t num_rows, int num_threads) {
    check_tables(call.tables, call.pages, num_rows, true);
    const std::vector<Place> places = find_places(call.tables, call.pages);
    if (uint8_t* is_made = call.pages.summaries.is_made)
        for (const Place& place : places) is_made[place.page] = 0;
    const int64_t count = num_rows * call.pages.num_kv_heads;
    const int team = count < kMinimumParallelRows ? 1 : num_threads;
    in_parts(team, [&](int part) {
        Writer writer(call);
        for (int64_t index = count * part / team; index < count * (part + 1) / team; index++)
            writer.write(index % num_rows, index / num_rows, places[size_t(index % num_rows)]);
    });
}

}  // namespace pagoda
