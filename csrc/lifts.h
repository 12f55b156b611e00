// What the constants of keys add to scores: the product of a query with what the keys of a page have in common.
//
// A pair of channels (x, y) of the query and a base (a, b) turned by an angle give cosine * (x a + y b) + sine * (y a -
// x b). What stands in brackets is found once for a row; then every page costs two products a pair, many pages at once.
#pragma once

#include "work.h"

namespace pagoda {
namespace {

class Lifts {
  public:
    explicit Lifts(const Work& work)
        : work_(work),
          count_(work.call.pages.constants.num_pairs),
          numbers_(numbers_of(work.call.tables, work.tile.sequence, work.tile.kv_head)) {
        for (int64_t i = 0; i < count_; i++)
            pairs_[i] = based_pair(work.call.pages.constants, work.tile.kv_head, i);
    }

    bool is_empty() const { return count_ == 0; }

    void pack_queries() {
        if (count_ == 0) return;
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

    // Turns to some panels of a block.
    void locate(const Block& block, PanelRange panels) {
        if (count_ == 0) return;
        const int64_t tokens = panel_tokens(work_.call.pages), page_tokens = work_.call.pages.page_tokens;
        panels_ = panels;
        first_page_ = (block.first_token + panels.first * tokens) / page_tokens;
        for (int panel = panels.first; panel < panels.last; panel++)
            page_of_[panel] = int((block.first_token + panel * tokens) / page_tokens - first_page_);
    }

    // Of row `row` of the tile: one for each of these panels. Untouched without constants.
    void find(int64_t row, float* lifts) const {
        if (count_ == 0) return;
        float of_page[kMaxPanels + kLanes];
        const int last = page_of_[panels_.last - 1];
        for (int page = 0; numbers_ && page <= last; page++) of_page[page] = of_pages(row, numbers_[first_page_ + page])[0];
        for (int page = 0; !numbers_ && page <= last; page += kLanes)
            store(of_page + page, of_pages(row, first_page_ + page));
        for (int panel = panels_.first; panel < panels_.last; panel++) lifts[panel] = of_page[page_of_[panel]];
    }

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

  private:
    float* turns_of(int64_t row) const { return work_.scratch.query_turns + row * 2 * KeyConstants::kMostPairs; }

    const Work& work_;
    const int64_t count_;
    const int32_t* const numbers_;  // of pages that are chosen
    BasedPair pairs_[KeyConstants::kMostPairs];
    PanelRange panels_{};
    int64_t first_page_ = 0;
    int page_of_[kMaxPanels];
};

}  // namespace
}  // namespace pagoda
