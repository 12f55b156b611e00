// What a kernel is given: plain data about pages, page tables and rules.
//
// Knows neither Python nor torch nor an instruction set, and uses no standard library, so every translation unit,
// whatever its instruction set, can include it. Its functions are static: the linker must not hand a unit the copy that
// another unit compiled for a wider instruction set. Strides are in numbers, sizes named `nbytes` in bytes, positions
// in tokens.
#pragma once

#include <cstdint>

namespace pagoda {

enum class Number { fp32, fp16, bf16 };

static inline int64_t rounded_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

static inline int64_t number_nbytes(Number number) { return number == Number::fp32 ? 4 : 2; }

// A matrix per packed token: [rows, heads, width], the last stride being one.
struct Rows {
    uint8_t* data;
    int64_t row_stride;
    int64_t head_stride;
    Number number;
};

// How a plane keeps its numbers: as they are, as codes of a byte with a scale for each token (`formats/scaled.py`), or
// as codes of four bits with a step and a zero for each group of channels besides (`formats/int4.py`).
enum class Encoding { none, int8, e4m3, e5m2, int4 };

constexpr int64_t kScaleNbytes = 2;
constexpr int64_t kWordCodes = 4;

static inline int64_t code_nbytes(Encoding encoding, int64_t width) {
    return encoding == Encoding::int4 ? width / 2 : width;
}

// One plane inside every page: [KV heads, width, tokens] in the word order of `formats/words.py`. Codes of rows may be
// those of a transform of so many channels at a time (`formats/rotated.py`). Groups of four-bit codes have at most
// `group_channels`, and are cut from each half of a row, unless it is one group.
struct Plane {
    int64_t offset_nbytes;
    int64_t width;
    Encoding encoding;
    int64_t rotated_channels;
    int64_t group_channels;
};

static inline int64_t half_groups(const Plane& plane) {
    return (plane.width / 2 + plane.group_channels - 1) / plane.group_channels;
}

// A byte for each: the step less one in the low bits, the zero in the high ones.
static inline int64_t num_groups(const Plane& plane) {
    if (plane.encoding != Encoding::int4) return 0;
    return plane.group_channels == plane.width ? 1 : 2 * half_groups(plane);
}

static inline bool has_codes(const Plane& plane) { return plane.encoding != Encoding::none; }

// Whether codes are small integers, which instructions for bytes can multiply.
static inline bool multiplies_bytes(const Plane& plane) {
    return plane.encoding == Encoding::int8 || plane.encoding == Encoding::int4;
}

// What a head's keys are coded without (`formats/constants.py`): a key is `scales` times what is kept, plus what some
// pairs of its channels have in common, turned to the first position of the page. The cosine and the sine of page p of a
// turn are at `turns[2 * turn * turn_stride + p]` and `turn_stride` further, with zeros behind the last page.
struct KeyConstants {
    const float* scales;     // [KV heads, width], or null: keys are kept as they are
    const int32_t* pairs;    // [KV heads, num_pairs, 3]: two channels and their turn
    const float* bases;      // [KV heads, num_pairs, 2]
    const float* turns;      // [turns, 2, turn_stride]
    int64_t num_pairs;
    int64_t turn_stride;

    static constexpr int64_t kMostPairs = 16;
    static constexpr int64_t kTurnEdge = 16;
};

// A pair of channels with what it has in common.
struct BasedPair {
    int32_t first;
    int32_t second;
    const float* cosines;
    const float* sines;
    float base_first;
    float base_second;
};

static inline BasedPair based_pair(const KeyConstants& constants, int64_t head, int64_t pair) {
    const int64_t index = head * constants.num_pairs + pair;
    const int32_t* numbers = constants.pairs + 3 * index;
    const float* cosines = constants.turns + 2 * numbers[2] * constants.turn_stride;
    return {numbers[0], numbers[1], cosines, cosines + constants.turn_stride, constants.bases[2 * index],
            constants.bases[2 * index + 1]};
}

// What bounds the scores of a page's tokens (summaries.h), for each page and KV head; `is_made` says of which pages.
struct Summaries {
    uint16_t* numbers;  // bf16 [pages, KV heads, summary_stride], or null: every token is read
    uint8_t* is_made;   // [pages]
};

// `number` is that of planes without encoding, and bf16 if there is none. Where values are the first channels of the
// keys, `value` is the plane of the keys but for its width. The planes are those of `layer`, and those of the next lie
// `layer_nbytes` further, or 0 if layers are not alike.
struct Pages {
    uint8_t* data;
    int64_t num_pages;
    int64_t page_nbytes;
    int64_t page_tokens;
    int64_t num_kv_heads;
    Number number;
    Plane key;
    Plane value;
    bool values_in_keys;
    KeyConstants constants;
    int64_t layer;
    int64_t layer_nbytes;
    Summaries summaries;
};

static inline int64_t head_nbytes(const Pages& pages, const Plane& plane) {
    if (plane.encoding != Encoding::none)
        return pages.page_tokens * (code_nbytes(plane.encoding, plane.width) + kScaleNbytes + num_groups(plane));
    return pages.page_tokens * plane.width * number_nbytes(pages.number);
}

// The numbers of a summary: pairs of whole vectors, of every instruction set.
constexpr int64_t kSummaryMultiple = 32;

static inline int64_t summary_stride(const Pages& pages) { return rounded_up(2 * pages.key.width, kSummaryMultiple); }

// The share of a KV head in a page. That of another layer has `data` as many bytes further as its planes are.
struct Cell {
    uint8_t* data;
    int64_t head;
};

static inline Cell own_cell(const Pages& pages, int64_t page, int64_t head) {
    return {pages.data + page * pages.page_nbytes, head};
}

static inline uint8_t* plane_of(const Pages& pages, const Plane& plane, const Cell& cell) {
    return cell.data + plane.offset_nbytes + cell.head * head_nbytes(pages, plane);
}

// See `GroupView` in kernels/base.py. With `head_pages` above 0 the table of a sequence has so many pages for each KV head,
// those of one after those of another, which are numbers `page_numbers` of the sequence; else the pages of all heads.
struct Tables {
    const int32_t* page_indices;
    const int32_t* page_starts;
    const int32_t* query_starts;
    const int32_t* context_lengths;
    int64_t num_sequences;
    int64_t num_page_indices;
    const int32_t* positions;  // [rows], or null, as the next two
    const int32_t* slots;
    const int64_t* ancestors;
    bool is_compacted;
    const int32_t* cell_starts;  // [sequences, page_cells + 1], or null
    int64_t page_cells;          // of a page: layers x KV heads
    const int32_t* readings;     // [sequences, 2], or null
    const int32_t* head_pages;   // [sequences], or null
    const int32_t* page_numbers;
};

// The pages of a KV head of a sequence.
static inline const int32_t* table_of(const Tables& tables, int64_t sequence, int64_t head) {
    const int64_t first = tables.head_pages ? head * tables.head_pages[sequence] : 0;
    return tables.page_indices + tables.page_starts[sequence] + first;
}

// The numbers of these pages in the sequence; null if they are their places in the table.
static inline const int32_t* numbers_of(const Tables& tables, int64_t sequence, int64_t head) {
    if (!tables.head_pages || tables.head_pages[sequence] == 0) return nullptr;
    return tables.page_numbers + (table_of(tables, sequence, head) - tables.page_indices);
}

static inline int64_t new_tokens(const Tables& tables, int64_t sequence) {
    return tables.query_starts[sequence + 1] - tables.query_starts[sequence];
}

// With `encoder` the pages hold what an encoder made of its input: every query reaches all of it, whatever its position.
enum class Reach { full, sliding, chunked, encoder };

// What is added to scores by distance. In the row of each head come kEdge times the bias of the greatest distance, which
// is that of all greater ones, then the biases from `num_distances - 1` down to 0, then kEdge zeros.
struct Biases {
    const float* rows;  // [heads, num_distances + 2 x kEdge], or null
    int64_t num_distances;

    static constexpr int64_t kEdge = 16;
};

struct Rule {
    float scale;
    bool has_soft_cap;
    float soft_cap;
    Reach reach;
    int64_t span;
    const float* slopes;  // [heads], or null: what a score loses for each token back from the query
    Biases biases;
    int64_t sink_tokens;  // that a window or chunk leaves in reach
};

// The first token that a query at `position` attends to, and the one after the last of a sequence of `length` tokens.
static inline int64_t first_in_reach(const Rule& rule, int64_t position) {
    if (rule.reach == Reach::sliding) return position < rule.span ? 0 : position - rule.span + 1;
    if (rule.reach == Reach::chunked) return position / rule.span * rule.span;
    return 0;
}

static inline int64_t end_of_reach(const Rule& rule, int64_t position, int64_t length) {
    return rule.reach == Reach::encoder ? length : position + 1;
}

struct AttendCall {
    Rows query;
    Rows out;
    Pages pages;
    Tables tables;
    Rule rule;
    const float* sinks;  // [heads], or null
    int64_t num_heads;
    bool shares_splits;  // whether sequences on the same pages read them together
    const uint8_t* placed;  // [sequences]: whether new tokens do not simply follow (places.h); null if all do
};

// What the new tokens of one sequence make of its keys; `out` of `attended` is not used. Rows are numbered by query head,
// then by new token.
struct ScoreCall {
    AttendCall attended;
    float* logits;       // [query heads, new tokens, tokens], or null
    float* mass;         // [query heads, tokens], or null: begins as zeros
    bool is_peak;        // whether `mass` has the largest weight of all rows, or their sum
    float* maxima;       // [query heads, new tokens]: the largest scores of base two
    float* normalisers;  // [query heads, new tokens]: what makes weights of powers of two that are relative to these
};

// How the bytes that are written of a token lie in a page: `num_runs` runs of `run_nbytes`, `stride_nbytes` apart. Token t
// of a head is at `outer_nbytes` x (t / inner_tokens) + `inner_nbytes` x (t % inner_tokens).
struct TokenPlane {
    int64_t offset_nbytes;
    int64_t head_nbytes;
    int64_t inner_tokens;
    int64_t outer_nbytes;
    int64_t inner_nbytes;
    int64_t num_runs;
    int64_t stride_nbytes;
    int64_t run_nbytes;
};

// Copies tokens of each head from slots `kept` of the pages in `table` to cells of the pages in `target`, `cell_step`
// apart: a page has `page_cells` of them, layer by layer.
struct MoveCall {
    Pages pages;
    const int64_t* table;
    int64_t num_slots;
    const int64_t* kept;         // those of one head after those of another
    const int64_t* kept_starts;  // [KV heads + 1]
    const int64_t* first_cells;  // [KV heads]
    int64_t cell_step;
    int64_t page_cells;
    uint8_t* target;
    int64_t num_target_pages;
    int64_t target_page_nbytes;
    const TokenPlane* planes;
    int64_t num_planes;
};

static inline int64_t group_heads(const AttendCall& call) { return call.num_heads / call.pages.num_kv_heads; }

// `finite` has a byte for each sequence, which becomes zero if a number of it that was stored is NaN or infinite.
struct StoreCall {
    Rows key;
    Rows value;
    Pages pages;
    Tables tables;
    uint8_t* finite;  // or null
};

// Softmax statistics and value sums are kept per block, folded per split. Both begin at fixed positions of a sequence,
// so a row's result depends on its own tokens alone: not on the batch, the chunk of a prompt or the number of threads.
constexpr int64_t kBlockTokens = 256;

// Channels whose products of a byte and an integer of 16 bits can be summed in 32 bits.
constexpr int64_t kMostShortWidth = 512;
constexpr int64_t kSplitTokens = 1024;

// Linear layers on vectors compute a few output columns at a time.
constexpr int64_t kLinearLeastColumns = 4;

// Those on tiles take bf16 input in panels of rows, and compute output columns in blocks. A wide one keeps the sums of
// two blocks for every panel at hand: neighbours, or the same one of two weights.
constexpr int64_t kLinearPanelRows = 32;
constexpr int64_t kLinearBlockColumns = 16;
constexpr int64_t kLinearPanelSums = 2 * kLinearPanelRows * kLinearBlockColumns;
constexpr int64_t kLinearDepthMultiple = 32;

// Query rows of one KV head (tokens x heads of the group) that one work item carries over the context.
constexpr int64_t kTileRows = 128;

// One work item: rows [first_row, first_row + num_rows) of the new tokens x group heads of one sequence and KV head,
// over the context [first_token, last_token). With `partial` set the item covers one split and leaves its statistics
// there, else it writes the result. With `sharers` set the rows are those of several sequences with one new token each,
// one after the other, and the context, which lies on the same pages for all, is in reach of every row. Where a rule
// leaves tokens in reach that lie before the context, those up to `sink_end` belong to it too.
struct Tile {
    int64_t sequence;
    int64_t kv_head;
    int64_t first_row;
    int64_t num_rows;
    int64_t first_token;
    int64_t last_token;
    int64_t sink_end;
    float* partial;
    const int32_t* sharers;
};

// The statistics of all rows of a tile for each of its `count` splits, to be folded in order.
struct SplitTile {
    Tile tile;
    const float* const* partials;
    int64_t count;
};

// Value sums are kept in rows of whole vectors, of every instruction set.
static inline int64_t value_stride(const AttendCall& call) { return rounded_up(call.pages.value.width, 16); }

// A partial holds per row: maximum, sum and value sums.
static inline int64_t partial_floats(const AttendCall& call) { return 2 + value_stride(call); }

// So many pages have their scores bounded at a time.
constexpr int64_t kBoundPages = 512;

// A linear layer: out [rows, columns] = input [rows, depth] x weight^T + bias, all of one type and contiguous. With `up`
// there are two of them, without bias, and out = silu(input x weight^T) * (input x up^T).
struct LinearCall {
    const uint8_t* input;
    const uint8_t* weight;  // [columns, depth]
    const uint8_t* up;      // [columns, depth], or null
    const uint8_t* bias;    // [columns], or null
    uint8_t* out;
    int64_t rows;
    int64_t columns;
    int64_t depth;
    Number number;
};

// Root-mean-square norm of each row of `input` [rows, width], times `weight` [width]; all contiguous and of one type.
struct NormCall {
    const uint8_t* input;
    const uint8_t* weight;
    uint8_t* out;
    int64_t width;
    float epsilon;
    Number number;
};

// Number by number, of two one; all contiguous and of one type.
struct PairCall {
    const uint8_t* first;
    const uint8_t* second;
    uint8_t* out;
    Number number;
};

// Numbers of a tensor as fp32.
struct WidenCall {
    const uint8_t* input;
    float* out;
    Number number;
};

// Rotary embedding of all channels of every head; `cosines` and `sines` are [rows, width], of the type of `input`.
struct RotateCall {
    Rows input;
    Rows out;
    const uint8_t* cosines;
    const uint8_t* sines;
    int64_t num_heads;
    int64_t width;
};

constexpr int64_t kMaxRotatedWidth = 512;

// out [rows, heads, columns] = input [rows, heads, depth] x a matrix of each head, [depth, columns], all of one type.
// The matrices lie `head_stride` numbers apart, line by line: lines are their columns (`by_columns`) or their rows.
struct HeadsCall {
    Rows input;
    Rows out;
    const uint8_t* weight;
    int64_t head_stride;
    int64_t line_stride;
    Number number;
    bool by_columns;
    int64_t num_rows;
    int64_t depth;
    int64_t columns;
};

constexpr int64_t kMaxHeadRows = 8;
constexpr int64_t kMaxHeadWidth = 1024;
constexpr int64_t kHeadWidthMultiple = 16;

// coding.h
struct CodedCall;
struct CodedRoom;
struct CodedHeadsCall;

// Those of products with coded weights.
struct CodedKernels {
    void (*code_rows)(const CodedCall& call, int64_t first_row, int64_t last_row);
    void (*multiply)(const CodedCall& call, int64_t first_block, int64_t last_block, const CodedRoom& room);
    void (*multiply_heads)(const CodedHeadsCall& call, int64_t first_head, int64_t last_head, float* room);
};

// The functions of one instruction set. Those for linear layers on tiles are null where there are none.
struct KernelTable {
    const char* name;
    int64_t (*scratch_nbytes)(const AttendCall& call);
    void (*attend)(const AttendCall& call, const Tile& tile, uint8_t* scratch);
    void (*fold)(const AttendCall& call, const SplitTile& splits, uint8_t* scratch);
    void (*logits)(const ScoreCall& call, const Tile& tile, uint8_t* scratch);
    void (*sum_weights)(const ScoreCall& call, const Tile& tile, uint8_t* scratch);
    void (*add_weights)(const ScoreCall& call, const Tile& part, uint8_t* scratch);
    void (*summarise)(const AttendCall& call, int64_t page, uint8_t* scratch);
    void (*bound_scores)(const AttendCall& call, const Tile& tile, int64_t first_page, int64_t count, float* bounds,
                         uint8_t* scratch);
    int64_t (*multiply_at_peak)(int64_t rounds);
    void (*linear_on_vectors)(const LinearCall& call, int64_t first_column, int64_t last_column);
    void (*pack_panel)(const LinearCall& call, int64_t first_row, int64_t tiles, uint8_t* packed);
    void (*linear)(const LinearCall& call, const uint8_t* packed, int64_t first_block, int64_t last_block);
    void (*linear_wide)(const LinearCall& call, const uint8_t* packed, int64_t first_block, int64_t last_block,
                        float* sums);
    const CodedKernels* coded;
    void (*rms_norm)(const NormCall& call, int64_t first_row, int64_t last_row);
    void (*gated_silu)(const PairCall& call, int64_t first_number, int64_t last_number);
    void (*add)(const PairCall& call, int64_t first_number, int64_t last_number);
    void (*widen)(const WidenCall& call, int64_t first_number, int64_t last_number);
    void (*rotate)(const RotateCall& call, int64_t first_row, int64_t last_row);
    void (*multiply_heads)(const HeadsCall& call, int64_t first_head, int64_t last_head);
};

}  // namespace pagoda
