// Finds the sequences whose new tokens do not simply follow one another, and refuses what would be computed wrongly.
#include "places.h"

#include <algorithm>
#include <stdexcept>

#include "plan.h"

namespace pagoda {
namespace {

bool is_tree(const Tables& tables, int64_t sequence) {
    const int64_t count = new_tokens(tables, sequence);
    for (int64_t token = 0; token < count; token++) {
        if (tables.ancestors[tables.query_starts[sequence] + token] == kChain) continue;
        for (int64_t other = 0; other < std::min(token, kMostTreeTokens); other++)
            if (!sees(tables, sequence, token, other)) return true;
    }
    return false;
}

bool has_own_slots(const Tables& tables, int64_t sequence) {
    const int64_t past = past_tokens(tables, sequence), count = new_tokens(tables, sequence);
    for (int64_t token = 0; token < count; token++)
        if (slot_of(tables, sequence, token) != past + token) return true;
    return false;
}

bool has_own_positions(const Tables& tables, int64_t sequence) {
    const int64_t past = past_tokens(tables, sequence), count = new_tokens(tables, sequence);
    const int32_t* positions = tables.positions + tables.query_starts[sequence];
    for (int64_t token = 0; token < count; token++)
        if (positions[token] != past + token) return true;
    return false;
}

void check_positions(const Tables& tables, int64_t sequence) {
    const int64_t past = past_tokens(tables, sequence), count = new_tokens(tables, sequence);
    if (has_own_slots(tables, sequence))
        throw std::invalid_argument("tokens stored in other slots than the last of a page table have no distance");
    if (!tables.positions) return;
    const int32_t* positions = tables.positions + tables.query_starts[sequence];
    if (std::any_of(positions, positions + count, [past](int32_t position) { return position < past; }))
        throw std::invalid_argument("a new token of a sequence lies before what is stored");
}

}  // namespace

void check_places(const Tables& tables, int64_t sequence) {
    const int64_t first = tables.query_starts[sequence], count = new_tokens(tables, sequence);
    if (tables.ancestors && count > kMostTreeTokens &&
        std::any_of(tables.ancestors + first, tables.ancestors + first + count, [](int64_t one) { return one != kChain; }))
        throw std::invalid_argument("a sequence has a tree of more new tokens than 64");
    if (!tables.slots) return;
    std::vector<int32_t> slots(tables.slots + first, tables.slots + first + count);
    std::sort(slots.begin(), slots.end());
    if (count > 0 && (slots.front() < 0 || slots.back() >= tables.context_lengths[sequence]))
        throw std::invalid_argument("a new token of a sequence has a slot that its page table does not have");
    if (std::adjacent_find(slots.begin(), slots.end()) != slots.end())
        throw std::invalid_argument("two new tokens of a sequence have one slot");
}

std::vector<uint8_t> find_placed(const AttendCall& call) {
    const Tables& tables = call.tables;
    if (call.rule.reach == Reach::encoder) return {};
    const bool has_distances = needs_positions(call.rule);
    if (tables.is_compacted && (has_distances || call.pages.constants.num_pairs > 0))
        throw std::invalid_argument("page tables are compacted, but attention needs the positions of what is stored");
    const bool asks_positions = has_distances && tables.positions;
    if (!asks_positions && !tables.slots && !tables.ancestors) return {};
    std::vector<uint8_t> placed(size_t(tables.num_sequences), 0);
    for (int64_t sequence = 0; sequence < tables.num_sequences; sequence++) {
        const bool is_own = (asks_positions && has_own_positions(tables, sequence)) ||
                            (tables.slots && has_own_slots(tables, sequence)) ||
                            (tables.ancestors && is_tree(tables, sequence));
        placed[size_t(sequence)] = is_own;
        if (is_own && has_distances) check_positions(tables, sequence);
    }
    if (std::count(placed.begin(), placed.end(), 0) == tables.num_sequences) return {};
    return placed;
}

}  // namespace pagoda
