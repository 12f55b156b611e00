// What the constants of keys add to scores: the product of a query with what the keys of a page have in common.
//
// A pair of channels (x, y) of the query and a base (a, b) turned by an angle give cosine * (x a + y b) + sine * (y a -
// x b). What stands in brackets is found once for a row; then every page costs two products a pair, many pages at once.
#pragma once

#include "keys.h"

namespace pagoda {
namespace {

class Lifts {
  public:
    explicit Lifts(const Work& work) : work_(work), count_(work.call.pages.constants.num_pairs) {
        for (int64_t i = 0; i < count_; i++)
            pairs_[i] = based_pair(work.call.pages.constants, work.tile.kv_head, i);
    }

    bool any() const { return count_ > 0; }

    void pack_queries() {
        for (int64_t row = 0; row < work_.tile.num_rows; row++) {
            read_row(work_.scratch.row, query_data(work_, row), work_.call.query.number, work_.call.pages.key.width);
            float* turned = turns_of(row);
            for (int64_t i = 0; i < count_; i++) {
                const BasedPair& pair = pairs_[i];
                const float first = work_.scratch.row[pair.first], second = work_.scratch.row[pair.second];
                turned[2 * i] = first * pair.base_first + second * pair.base_second;
                turned[2 * i + 1] = second * pair.base_first - first * pair.base_second;
            }
        }
    }

    // Adds them to the scores of a band.
    void add(const Block& block, PanelRange panels, const Band& band) const {
        const int64_t tokens = panel_tokens(work_.call.pages), page_tokens = work_.call.pages.page_tokens;
        const int64_t first_page = (block.first_token + panels.first * tokens) / page_tokens;
        const int64_t last_page = (block.first_token + (panels.last - 1) * tokens) / page_tokens;
        float lifts[kMaxPanels + kLanes];
        for (int64_t row = 0; row < band.count; row++) {
            for (int64_t page = first_page; page <= last_page; page += kLanes)
                store(lifts + (page - first_page), of_pages(band.first + row, page));
            float* scores = work_.scratch.scores + row * kScoreStride;
            for (int panel = panels.first; panel < panels.last; panel++) {
                const int64_t page = (block.first_token + panel * tokens) / page_tokens;
                const Floats lift = splat(lifts[page - first_page]);
                for (int64_t token = panel * tokens; token < (panel + 1) * tokens; token += kLanes)
                    store(scores + token, load(scores + token) + lift);
            }
        }
    }

  private:
    float* turns_of(int64_t row) const { return work_.scratch.query_turns + row * 2 * KeyConstants::kMostPairs; }

    // Of as many pages as a vector has lanes.
    Floats of_pages(int64_t row, int64_t page) const {
        const float* turned = turns_of(row);
        Floats cosine{}, sine{};  // two chains of sums
        for (int64_t i = 0; i < count_; i++) {
            cosine += load(pairs_[i].cosines + page) * turned[2 * i];
            sine += load(pairs_[i].sines + page) * turned[2 * i + 1];
        }
        return cosine + sine;
    }

    const Work& work_;
    const int64_t count_;
    BasedPair pairs_[KeyConstants::kMostPairs];
};

}  // namespace
}  // namespace pagoda
