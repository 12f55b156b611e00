// Copies the bytes of tokens from pages to others, each head's own ones.
//
// Knows where bytes lie, not what they mean.
#include <stdexcept>

#include "run.h"
#include "team.h"

namespace pagoda {
namespace {

// Below this many tokens x heads waking a second thread costs more than it saves.
constexpr int64_t kMinimumParallelTokens = 512;

template <class Run>
void copy_runs(const TokenPlane& plane, const uint8_t* source, uint8_t* target) {
    for (int64_t run = 0; run < plane.num_runs; run++)
        __builtin_memcpy(target + run * plane.stride_nbytes, source + run * plane.stride_nbytes, sizeof(Run));
}

void copy_token(const TokenPlane& plane, const uint8_t* source, uint8_t* target) {
    switch (plane.run_nbytes) {
        case 1: return copy_runs<uint8_t>(plane, source, target);
        case 2: return copy_runs<uint16_t>(plane, source, target);
        case 4: return copy_runs<uint32_t>(plane, source, target);
    }
    for (int64_t run = 0; run < plane.num_runs; run++)
        __builtin_memcpy(target + run * plane.stride_nbytes, source + run * plane.stride_nbytes,
                         size_t(plane.run_nbytes));
}

int64_t place_in(const TokenPlane& plane, int64_t head, int64_t token) {
    return plane.offset_nbytes + head * plane.head_nbytes + token / plane.inner_tokens * plane.outer_nbytes +
           token % plane.inner_tokens * plane.inner_nbytes;
}

int64_t num_kept(const MoveCall& call, int64_t head) { return call.kept_starts[head + 1] - call.kept_starts[head]; }

int64_t cell_of(const MoveCall& call, int64_t head, int64_t index) {
    return call.first_cells[head] + index / call.pages.page_tokens * call.cell_step;
}

// Tokens [first, last) of those that a head keeps.
void move_head(const MoveCall& call, const TokenPlane& plane, int64_t head, int64_t first, int64_t last) {
    const Pages& pages = call.pages;
    const int64_t* kept = call.kept + call.kept_starts[head];
    for (int64_t index = first; index < last; index++) {
        const uint8_t* source = pages.data + call.table[kept[index] / pages.page_tokens] * pages.page_nbytes;
        const int64_t cell = cell_of(call, head, index), place = cell % call.page_cells;
        uint8_t* target = call.target + cell / call.page_cells * call.target_page_nbytes +
                          (place / pages.num_kv_heads - pages.layer) * pages.layer_nbytes;
        copy_token(plane, source + place_in(plane, head, kept[index] % pages.page_tokens),
                   target + place_in(plane, place % pages.num_kv_heads, index % pages.page_tokens));
    }
}

void check(const MoveCall& call) {
    for (int64_t page = 0; page * call.pages.page_tokens < call.num_slots; page++)
        if (call.table[page] < 0 || call.table[page] >= call.pages.num_pages)
            throw std::invalid_argument("a page table names a page that the pool does not have");
    for (int64_t index = 0; index < call.kept_starts[call.pages.num_kv_heads]; index++)
        if (call.kept[index] < 0 || call.kept[index] >= call.num_slots)
            throw std::invalid_argument("a token that is kept is none of the sequence");
    const int64_t num_cells = call.num_target_pages * call.page_cells;
    for (int64_t head = 0; head < call.pages.num_kv_heads; head++)
        if (num_kept(call, head) > 0 && cell_of(call, head, num_kept(call, head) - 1) >= num_cells)
            throw std::invalid_argument("there is no room for the tokens that are kept");
}

}  // namespace

void move_tokens(const MoveCall& call, int num_threads) {
    check(call);
    const int64_t heads = call.pages.num_kv_heads;
    const int team = call.kept_starts[heads] < kMinimumParallelTokens ? 1 : num_threads;
    in_parts(team, [&](int part) {
        for (int64_t plane = 0; plane < call.num_planes; plane++)
            for (int64_t head = 0; head < heads; head++)
                move_head(call, call.planes[plane], head, num_kept(call, head) * part / team,
                          num_kept(call, head) * (part + 1) / team);
    });
}

}  // namespace pagoda
