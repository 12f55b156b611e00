// The Python module `_native`: hands addresses and shapes to the kernels, with the GIL released.
//
// Holds no logic and copies nothing. Tensors arrive as addresses because converting one through DLPack costs more than
// a kernel's whole set-up (3 us each); `kernels/native.py`, its only caller, checks their shapes, types and strides,
// and the kernels check the page tables.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/operators.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "memory.h"
#include "packing.h"
#include "run.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagoda {
namespace {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

std::vector<std::string> instruction_sets() {
    const InstructionSets& sets = available_instruction_sets();
    std::vector<std::string> names;
    for (int index = 0; index < sets.count; index++) names.push_back(sets.tables[index]->name);
    return names;
}

const KernelTable& find_table(const std::string& name) {
    const InstructionSets& sets = available_instruction_sets();
    for (int index = 0; index < sets.count; index++)
        if (name == sets.tables[index]->name) return *sets.tables[index];
    throw std::invalid_argument("instruction set " + name + " is not available");
}

// Of those that are given the same rows.
struct CodedLayer {
    Coding coding;
    const uint8_t* weight;
    const uint8_t* bias;  // or null
    uint8_t* out;
    int64_t columns;
};

// The operations for one instruction set.
class Kernels {
  public:
    explicit Kernels(const std::string& name) : table_(find_table(name)) {}

    void attend(const Rows& query, const Rows& out, const Pages& pages, const Tables& tables, const Rule& rule,
                uintptr_t sinks, int64_t num_rows, int64_t num_heads, bool shares_splits, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::attend({query, out, pages, tables, rule, pointer<const float>(sinks), num_heads, shares_splits, nullptr},
                       table_, num_rows, num_threads);
    }

    void logits(const Rows& query, const Pages& pages, const Tables& tables, const Rule& rule, uintptr_t out,
                int64_t num_rows, int64_t num_heads, int num_threads) const {
        nb::gil_scoped_release released;
        const AttendCall attended{query, {}, pages, tables, rule, nullptr, num_heads, false, nullptr};
        pagoda::logits({attended, pointer<float>(out), nullptr, false, nullptr, nullptr}, table_, num_rows, num_threads);
    }

    void attention_mass(const Rows& query, const Pages& pages, const Tables& tables, const Rule& rule, uintptr_t sinks,
                        bool is_peak, uintptr_t out, int64_t num_rows, int64_t num_heads, int num_threads) const {
        nb::gil_scoped_release released;
        const AttendCall attended{query, {}, pages, tables, rule, pointer<const float>(sinks), num_heads, false, nullptr};
        pagoda::attention_mass({attended, nullptr, pointer<float>(out), is_peak, nullptr, nullptr}, table_, num_rows,
                               num_threads);
    }

    bool has_tiles() const { return table_.linear; }

    double peak_rate(int num_threads) const {
        nb::gil_scoped_release released;
        return pagoda::peak_rate(table_, num_threads);
    }

    void linear(uintptr_t input, uintptr_t weight, uintptr_t bias, uintptr_t out, int64_t rows, int64_t columns,
                int64_t depth, Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::linear({pointer<const uint8_t>(input), pointer<const uint8_t>(weight), nullptr,
                        pointer<const uint8_t>(bias), pointer<uint8_t>(out), rows, columns, depth, number},
                       table_, num_threads);
    }

    void gated_linear(uintptr_t input, uintptr_t gate, uintptr_t up, uintptr_t out, int64_t rows, int64_t columns,
                      int64_t depth, Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::linear({pointer<const uint8_t>(input), pointer<const uint8_t>(gate), pointer<const uint8_t>(up), nullptr,
                        pointer<uint8_t>(out), rows, columns, depth, number},
                       table_, num_threads);
    }

    void coded_linears(const std::vector<CodedLayer>& layers, uintptr_t input, int64_t rows, int64_t depth, Number number,
                       int num_threads) const {
        nb::gil_scoped_release released;
        std::vector<CodedCall> calls;
        for (const CodedLayer& layer : layers)
            calls.push_back({layer.coding, pointer<const uint8_t>(input), layer.weight, layer.bias, layer.out, rows,
                             layer.columns, depth, number, {}});
        if (!calls.empty()) pagoda::coded_linears(calls, table_, num_threads);
    }

    void coded_experts(const Coding& coding, uintptr_t input, uintptr_t weight, uintptr_t bias, uintptr_t out, int64_t rows,
                       int64_t columns, int64_t depth, Number number, uintptr_t experts, int64_t per_row,
                       int64_t num_experts, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::coded_experts({{coding, pointer<const uint8_t>(input), pointer<const uint8_t>(weight),
                                pointer<const uint8_t>(bias), pointer<uint8_t>(out), rows, columns, depth, number, {}},
                               pointer<const int64_t>(experts), per_row, num_experts},
                              table_, num_threads);
    }

    void coded_heads(const Coding& coding, const Rows& input, const Rows& out, uintptr_t weight, int64_t head_blocks,
                     int64_t num_rows, int64_t num_heads, int64_t depth, int64_t columns, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::coded_heads({coding, input, out, pointer<const uint8_t>(weight), head_blocks, num_rows, depth, columns},
                            table_, num_heads, num_threads);
    }

    void rms_norm(uintptr_t input, uintptr_t weight, uintptr_t out, int64_t rows, int64_t width, float epsilon,
                  Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::rms_norm({pointer<const uint8_t>(input), pointer<const uint8_t>(weight), pointer<uint8_t>(out), width,
                          epsilon, number},
                         table_, rows, num_threads);
    }

    void gated_silu(uintptr_t gate, uintptr_t up, uintptr_t out, int64_t count, Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::gated_silu({pointer<const uint8_t>(gate), pointer<const uint8_t>(up), pointer<uint8_t>(out), number},
                           table_, count, num_threads);
    }

    void add(uintptr_t first, uintptr_t second, uintptr_t out, int64_t count, Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::add({pointer<const uint8_t>(first), pointer<const uint8_t>(second), pointer<uint8_t>(out), number},
                    table_, count, num_threads);
    }

    void widen(uintptr_t input, uintptr_t out, int64_t count, Number number, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::widen({pointer<const uint8_t>(input), pointer<float>(out), number}, table_, count, num_threads);
    }

    void rotate(const Rows& input, const Rows& out, uintptr_t cosines, uintptr_t sines, int64_t rows, int64_t num_heads,
                int64_t width, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::rotate({input, out, pointer<const uint8_t>(cosines), pointer<const uint8_t>(sines), num_heads, width},
                       table_, rows, num_threads);
    }

    void multiply_heads(const Rows& input, const Rows& out, uintptr_t weight, int64_t head_stride, int64_t line_stride,
                        bool by_columns, int64_t num_rows, int64_t num_heads, int64_t depth, int64_t columns,
                        int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::multiply_heads({input, out, pointer<const uint8_t>(weight), head_stride, line_stride, input.number,
                                by_columns, num_rows, depth, columns},
                               table_, num_heads, num_threads);
    }

    void store(const Rows& key, const Rows& value, const Pages& pages, const Tables& tables, uintptr_t finite,
               int64_t num_rows, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::store({key, value, pages, tables, pointer<uint8_t>(finite)}, num_rows, num_threads);
    }

    void move_tokens(const Pages& pages, uintptr_t table, int64_t num_slots, uintptr_t kept,
                     const std::vector<int64_t>& kept_starts, const std::vector<int64_t>& first_cells,
                     int64_t cell_step, int64_t page_cells, uintptr_t target, int64_t num_target_pages,
                     int64_t target_page_nbytes, const std::vector<TokenPlane>& planes, int num_threads) const {
        nb::gil_scoped_release released;
        pagoda::move_tokens({pages, pointer<const int64_t>(table), num_slots, pointer<const int64_t>(kept),
                             kept_starts.data(), first_cells.data(), cell_step, page_cells, pointer<uint8_t>(target),
                             num_target_pages, target_page_nbytes, planes.data(), int64_t(planes.size())},
                            num_threads);
    }

  private:
    const KernelTable& table_;
};

nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> allocate(size_t nbytes) {
    struct Mapping {
        uint8_t* data;
        size_t nbytes;
    };
    uint8_t* data = map_memory(nbytes);
    if (!data) throw std::bad_alloc();
    nb::capsule owner(new Mapping{data, nbytes}, [](void* address) noexcept {
        Mapping* mapping = static_cast<Mapping*>(address);
        unmap_memory(mapping->data, mapping->nbytes);
        delete mapping;
    });
    return {data, {nbytes}, owner};
}

void pack_gguf_rows(GgufType type, uintptr_t blocks, int64_t row_nbytes, int64_t rows, int64_t depth, uintptr_t out,
                    int num_threads) {
    nb::gil_scoped_release released;
    pack_gguf(type, pointer<const uint8_t>(blocks), row_nbytes, rows, depth, pointer<uint8_t>(out), num_threads);
}

void pack_plane_rows(const Coding& coding, uintptr_t codes, uintptr_t scales, uintptr_t minima, uintptr_t zeros,
                     int64_t rows, int64_t depth, uintptr_t out, int num_threads) {
    nb::gil_scoped_release released;
    pack_planes({coding, pointer<const uint8_t>(codes), pointer<const float>(scales), pointer<const float>(minima),
                 pointer<const int8_t>(zeros), rows, depth, pointer<uint8_t>(out)},
                num_threads);
}

void decode_weight_rows(const Coding& coding, uintptr_t weight, int64_t rows, int64_t depth, uintptr_t numbers, int64_t count,
                        uintptr_t out, Number number, int num_threads) {
    nb::gil_scoped_release released;
    decode_rows({coding, pointer<const uint8_t>(weight), rows, depth, pointer<const int64_t>(numbers), count,
                 pointer<uint8_t>(out), number},
                num_threads);
}

double read_gigabytes_per_second(size_t nbytes, int num_threads, int repeats, bool in_huge_pages) {
    nb::gil_scoped_release released;
    return read_bandwidth(nbytes, num_threads, repeats, in_huge_pages) / 1e9;
}

}  // namespace
}  // namespace pagoda

NB_MODULE(_native, module) {
    using namespace pagoda;
    nb::enum_<Number>(module, "Number")
        .value("FP32", Number::fp32)
        .value("FP16", Number::fp16)
        .value("BF16", Number::bf16);
    nb::enum_<Reach>(module, "Reach")
        .value("FULL", Reach::full)
        .value("SLIDING", Reach::sliding)
        .value("CHUNKED", Reach::chunked)
        .value("ENCODER", Reach::encoder);
    nb::class_<Rows>(module, "Rows")
        .def(
            "__init__",
            [](Rows* self, uintptr_t data, int64_t row_stride, int64_t head_stride, Number number) {
                new (self) Rows{pointer<uint8_t>(data), row_stride, head_stride, number};
            },
            "data"_a, "row_stride"_a, "head_stride"_a, "number"_a);
    nb::enum_<Encoding>(module, "Encoding")
        .value("NONE", Encoding::none)
        .value("INT8", Encoding::int8)
        .value("FP8_E4M3", Encoding::e4m3)
        .value("FP8_E5M2", Encoding::e5m2)
        .value("INT4", Encoding::int4);
    nb::class_<Plane>(module, "Plane")
        .def(nb::init<int64_t, int64_t, Encoding, int64_t, int64_t>(), "offset_nbytes"_a, "width"_a, "encoding"_a,
             "rotated_channels"_a, "group_channels"_a);
    nb::class_<KeyConstants>(module, "KeyConstants")
        .def(
            "__init__",
            [](KeyConstants* self, uintptr_t scales, uintptr_t pairs, uintptr_t bases, uintptr_t turns,
               int64_t num_pairs, int64_t turn_stride) {
                new (self) KeyConstants{pointer<const float>(scales), pointer<const int32_t>(pairs),
                                        pointer<const float>(bases),  pointer<const float>(turns),
                                        num_pairs,                    turn_stride};
            },
            "scales"_a, "pairs"_a, "bases"_a, "turns"_a, "num_pairs"_a, "turn_stride"_a);
    nb::class_<Pages>(module, "Pages")
        .def(
            "__init__",
            [](Pages* self, uintptr_t data, int64_t num_pages, int64_t page_nbytes, int64_t page_tokens,
               int64_t num_kv_heads, Number number, const Plane& key, const Plane& value, bool values_in_keys,
               const KeyConstants& constants, int64_t layer, int64_t layer_nbytes, uintptr_t summaries,
               uintptr_t is_summarised) {
                new (self) Pages{pointer<uint8_t>(data),
                                 num_pages,
                                 page_nbytes,
                                 page_tokens,
                                 num_kv_heads,
                                 number,
                                 key,
                                 value,
                                 values_in_keys,
                                 constants,
                                 layer,
                                 layer_nbytes,
                                 {pointer<uint16_t>(summaries), pointer<uint8_t>(is_summarised)}};
            },
            "data"_a, "num_pages"_a, "page_nbytes"_a, "page_tokens"_a, "num_kv_heads"_a, "number"_a, "key"_a,
            "value"_a, "values_in_keys"_a, "constants"_a, "layer"_a, "layer_nbytes"_a, "summaries"_a, "is_summarised"_a);
    nb::class_<Tables>(module, "Tables")
        .def(
            "__init__",
            [](Tables* self, uintptr_t page_indices, uintptr_t page_starts, uintptr_t query_starts,
               uintptr_t context_lengths, int64_t num_sequences, int64_t num_page_indices, uintptr_t positions,
               uintptr_t slots, uintptr_t ancestors, bool is_compacted, uintptr_t cell_starts, int64_t page_cells,
               uintptr_t readings) {
                new (self) Tables{pointer<const int32_t>(page_indices),
                                  pointer<const int32_t>(page_starts),
                                  pointer<const int32_t>(query_starts),
                                  pointer<const int32_t>(context_lengths),
                                  num_sequences,
                                  num_page_indices,
                                  pointer<const int32_t>(positions),
                                  pointer<const int32_t>(slots),
                                  pointer<const int64_t>(ancestors),
                                  is_compacted,
                                  pointer<const int32_t>(cell_starts),
                                  page_cells,
                                  pointer<const int32_t>(readings),
                                  nullptr,
                                  nullptr};
            },
            "page_indices"_a, "page_starts"_a, "query_starts"_a, "context_lengths"_a, "num_sequences"_a,
            "num_page_indices"_a, "positions"_a, "slots"_a, "ancestors"_a, "is_compacted"_a, "cell_starts"_a,
            "page_cells"_a, "readings"_a);
    nb::class_<Rule>(module, "Rule")
        .def(
            "__init__",
            [](Rule* self, float scale, bool has_soft_cap, float soft_cap, Reach reach, int64_t span, uintptr_t slopes,
               uintptr_t biases, int64_t num_distances, int64_t sink_tokens) {
                new (self) Rule{scale, has_soft_cap, soft_cap, reach, span, pointer<const float>(slopes),
                                {pointer<const float>(biases), num_distances}, sink_tokens};
            },
            "scale"_a, "has_soft_cap"_a, "soft_cap"_a, "reach"_a, "span"_a, "slopes"_a, "biases"_a, "num_distances"_a,
            "sink_tokens"_a);
    nb::class_<TokenPlane>(module, "TokenPlane")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>(), "offset_nbytes"_a,
             "head_nbytes"_a, "inner_tokens"_a, "outer_nbytes"_a, "inner_nbytes"_a, "num_runs"_a, "stride_nbytes"_a,
             "run_nbytes"_a);
    nb::class_<Coding>(module, "Coding")
        .def(nb::init<int, int, int, bool, bool, int64_t, Number, bool>(), "bits"_a, "zero"_a, "num_parts"_a, "has_minimum"_a,
             "has_table"_a, "superunit"_a, "scale"_a, "has_zeros"_a)
        .def(nb::self == nb::self)
        .def_ro("bits", &Coding::bits)
        .def_ro("zero", &Coding::zero)
        .def_ro("num_parts", &Coding::num_parts)
        .def_ro("has_minimum", &Coding::has_minimum)
        .def_ro("has_table", &Coding::has_table)
        .def_ro("superunit", &Coding::superunit)
        .def_ro("scale", &Coding::scale)
        .def_ro("has_zeros", &Coding::has_zeros)
        .def("block_nbytes", &block_nbytes, "depth"_a);
    nb::class_<CodedLayer>(module, "CodedLayer")
        .def(
            "__init__",
            [](CodedLayer* self, const Coding& coding, uintptr_t weight, uintptr_t bias, uintptr_t out, int64_t columns) {
                new (self) CodedLayer{coding, pointer<const uint8_t>(weight), pointer<const uint8_t>(bias),
                                      pointer<uint8_t>(out), columns};
            },
            "coding"_a, "weight"_a, "bias"_a, "out"_a, "columns"_a);
    nb::enum_<GgufType>(module, "GgufType")
        .value("Q4_0", GgufType::q4_0)
        .value("Q4_1", GgufType::q4_1)
        .value("Q5_0", GgufType::q5_0)
        .value("Q5_1", GgufType::q5_1)
        .value("Q8_0", GgufType::q8_0)
        .value("Q2_K", GgufType::q2_k)
        .value("Q3_K", GgufType::q3_k)
        .value("Q4_K", GgufType::q4_k)
        .value("Q5_K", GgufType::q5_k)
        .value("Q6_K", GgufType::q6_k)
        .value("IQ4_NL", GgufType::iq4_nl)
        .value("IQ4_XS", GgufType::iq4_xs)
        .def("coding", [](GgufType type) { return gguf::form_of(type).coding; })
        .def("block_depth", [](GgufType type) { return gguf::form_of(type).depth; })
        .def("block_nbytes", [](GgufType type) { return gguf::form_of(type).nbytes; });
    nb::class_<Kernels>(module, "Kernels")
        .def(nb::init<const std::string&>(), "instruction_set"_a)
        .def("attend", &Kernels::attend, "query"_a, "out"_a, "pages"_a, "tables"_a, "rule"_a, "sinks"_a, "num_rows"_a,
             "num_heads"_a, "shares_splits"_a, "num_threads"_a)
        .def("logits", &Kernels::logits, "query"_a, "pages"_a, "tables"_a, "rule"_a, "out"_a, "num_rows"_a,
             "num_heads"_a, "num_threads"_a)
        .def("attention_mass", &Kernels::attention_mass, "query"_a, "pages"_a, "tables"_a, "rule"_a, "sinks"_a,
             "is_peak"_a, "out"_a, "num_rows"_a, "num_heads"_a, "num_threads"_a)
        .def_prop_ro("has_tiles", &Kernels::has_tiles)
        .def("peak_rate", &Kernels::peak_rate, "num_threads"_a)
        .def("linear", &Kernels::linear, "input"_a, "weight"_a, "bias"_a, "out"_a, "rows"_a, "columns"_a, "depth"_a,
             "number"_a, "num_threads"_a)
        .def("gated_linear", &Kernels::gated_linear, "input"_a, "gate"_a, "up"_a, "out"_a, "rows"_a, "columns"_a,
             "depth"_a, "number"_a, "num_threads"_a)
        .def("coded_linears", &Kernels::coded_linears, "layers"_a, "input"_a, "rows"_a, "depth"_a, "number"_a,
             "num_threads"_a)
        .def("coded_experts", &Kernels::coded_experts, "coding"_a, "input"_a, "weight"_a, "bias"_a, "out"_a, "rows"_a,
             "columns"_a, "depth"_a, "number"_a, "experts"_a, "per_row"_a, "num_experts"_a, "num_threads"_a)
        .def("coded_heads", &Kernels::coded_heads, "coding"_a, "input"_a, "out"_a, "weight"_a, "head_blocks"_a,
             "num_rows"_a, "num_heads"_a, "depth"_a, "columns"_a, "num_threads"_a)
        .def("rms_norm", &Kernels::rms_norm, "input"_a, "weight"_a, "out"_a, "rows"_a, "width"_a, "epsilon"_a, "number"_a,
             "num_threads"_a)
        .def("gated_silu", &Kernels::gated_silu, "gate"_a, "up"_a, "out"_a, "count"_a, "number"_a, "num_threads"_a)
        .def("add", &Kernels::add, "first"_a, "second"_a, "out"_a, "count"_a, "number"_a, "num_threads"_a)
        .def("widen", &Kernels::widen, "input"_a, "out"_a, "count"_a, "number"_a, "num_threads"_a)
        .def("rotate", &Kernels::rotate, "input"_a, "out"_a, "cosines"_a, "sines"_a, "rows"_a, "num_heads"_a, "width"_a,
             "num_threads"_a)
        .def("multiply_heads", &Kernels::multiply_heads, "input"_a, "out"_a, "weight"_a, "head_stride"_a,
             "line_stride"_a, "by_columns"_a, "num_rows"_a, "num_heads"_a, "depth"_a, "columns"_a, "num_threads"_a)
        .def("store", &Kernels::store, "key"_a, "value"_a, "pages"_a, "tables"_a, "finite"_a, "num_rows"_a,
             "num_threads"_a)
        .def("move_tokens", &Kernels::move_tokens, "pages"_a, "table"_a, "num_slots"_a, "kept"_a, "kept_starts"_a,
             "first_cells"_a, "cell_step"_a, "page_cells"_a, "target"_a, "num_target_pages"_a, "target_page_nbytes"_a,
             "planes"_a, "num_threads"_a);
    module.attr("CODED_ROWS") = kCodedRows;
    module.attr("UNIT_DEPTH") = kUnitDepth;
    module.def("pack_gguf", &pack_gguf_rows, "type"_a, "blocks"_a, "row_nbytes"_a, "rows"_a, "depth"_a, "out"_a,
               "num_threads"_a);
    module.def("pack_planes", &pack_plane_rows, "coding"_a, "codes"_a, "scales"_a, "minima"_a, "zeros"_a, "rows"_a, "depth"_a,
               "out"_a, "num_threads"_a);
    module.def("decode_rows", &decode_weight_rows, "coding"_a, "weight"_a, "rows"_a, "depth"_a, "numbers"_a, "count"_a,
               "out"_a, "number"_a, "num_threads"_a);
    module.attr("MAX_ROTATED_WIDTH") = kMaxRotatedWidth;
    module.attr("MAX_HEAD_ROWS") = kMaxHeadRows;
    module.attr("MAX_HEAD_WIDTH") = kMaxHeadWidth;
    module.attr("HEAD_WIDTH_MULTIPLE") = kHeadWidthMultiple;
    module.attr("BIAS_EDGE") = Biases::kEdge;
    module.attr("MOST_PAIRS") = KeyConstants::kMostPairs;
    module.attr("SUMMARY_MULTIPLE") = kSummaryMultiple;
    module.attr("TURN_EDGE") = KeyConstants::kTurnEdge;
    module.def("instruction_sets", &instruction_sets);
    module.def("allocate", &allocate, "nbytes"_a);
    module.def("read_bandwidth", &read_gigabytes_per_second, "nbytes"_a, "num_threads"_a, "repeats"_a,
               "in_huge_pages"_a);
}
