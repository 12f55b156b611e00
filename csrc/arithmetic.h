// How the two products of attention are computed: on vectors, for any format, or on tiles, for bf16.
//
// Each class has the type of its left factors and the two products; it knows no pages, rows or softmax.
#pragma once

#include "product.h"
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

namespace pagoda {
namespace {

template <class Words>
class VectorArithmetic {
  public:
    typedef typename Words::Factor Factor;

    explicit VectorArithmetic(const Pages&) {}
    void scores(const Left<Factor>& left, const Panels& right, const Sums& sums) { product<Words>(left, right, sums); }
    void values(const Left<Factor>& left, const Panels& right, const Sums& sums) { product<Words>(left, right, sums); }
};

#if defined(__AMX_BF16__)

// Holds the tile configuration of its thread from its first product to its end.
class TileArithmetic {
  public:
    typedef Bf16 Factor;

    static bool fits(const Pages& pages) {
        return pages.key.width % 2 == 0 && tile_part(pages.key.width / 2) >= kMinimumTileWords &&
               tile_part(pages.value.width) >= kMinimumTileWords;
    }

    explicit TileArithmetic(const Pages& pages)
        : key_words_(tile_part(pages.key.width / 2)), value_columns_(tile_part(pages.value.width)) {}
    TileArithmetic(const TileArithmetic&) = delete;
    TileArithmetic& operator=(const TileArithmetic&) = delete;
    ~TileArithmetic() { release(); }

    void scores(const Left<Factor>& left, const Panels& right, const Sums& sums) {
        multiply(left, right, sums, {rows(left), key_words_, kTileWords});
    }

    void values(const Left<Factor>& left, const Panels& right, const Sums& sums) {
        multiply(left, right, sums, {rows(left), int(right.depth_words), value_columns_});
    }

  private:
    static int rows(const Left<Factor>& left) { return left.rows < kTileWords ? left.rows : kTileWords; }

    void multiply(const Left<Factor>& left, const Panels& right, const Sums& sums, const TileShape& shape) {
        if (!(shape == configured_)) configure(shape);
        configured_ = shape;
        product(left, right, sums, shape);
    }

    int key_words_;
    int value_columns_;
    TileShape configured_{};
};

#endif

}  // namespace
}  // namespace pagoda
