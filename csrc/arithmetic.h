// How the two products of attention are computed: on vectors, for any format, or on tiles, for bf16 and bytes.
//
// Each class has the type of its left factors and the two products; it knows no pages, rows or softmax. Those that
// multiply bytes have both products of them too, with integers of 16 bits: whole, or in two parts of a byte each.
#pragma once

#include "product.h"
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

namespace pagoda {
namespace {

typedef Sums<float> FloatSums;
typedef Sums<int32_t> IntegerSums;

template <class Words>
class VectorArithmetic {
  public:
    typedef typename Words::Factor Factor;

    explicit VectorArithmetic(const Pages&) {}
    void scores(const Left<Factor>& left, const Panels& right, const FloatSums& sums) {
        product<Words>(left, right, sums);
    }
    void values(const Left<Factor>& left, const Panels& right, const FloatSums& sums) {
        product<Words>(left, right, sums);
    }
};

#if defined(__AVX512BF16__)

class DotArithmetic : public VectorArithmetic<Bf16DotWords> {
  public:
    using VectorArithmetic::VectorArithmetic;

    static constexpr float kRaisedKeys = SignedByteWords::kRaised;

    void byte_scores(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        product<SignedByteWords>(left, right, sums);
    }
    void byte_values(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        product<UnsignedByteWords>(left, right, sums);
    }
};

#endif
#if defined(__AVX2__) && !defined(__AVX512VNNI__)

class ShortArithmetic : public VectorArithmetic<Bf16Words> {
  public:
    using VectorArithmetic::VectorArithmetic;

    static constexpr float kRaisedKeys = 0;

    void byte_scores(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        product<ShortWords>(left, right, sums);
    }
    void byte_values(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        product<ShortWords>(left, right, sums);
    }
};

#endif
#if defined(__AMX_BF16__)

// Holds the tile configuration of its thread from its first product to its end.
class TileArithmetic {
  public:
    typedef Bf16 Factor;

    static constexpr float kRaisedKeys = 0;

    static bool fits(const Pages& pages) {
        const int64_t key_codes = multiplies_bytes(pages.key) ? kWordCodes : 2;
        return pages.key.width % key_codes == 0 && tile_part(pages.key.width / key_codes) >= kMinimumTileWords &&
               tile_part(pages.value.width) >= kMinimumTileWords;
    }

    explicit TileArithmetic(const Pages& pages)
        : key_words_(tile_part(pages.key.width / 2)),
          byte_key_words_(tile_part(pages.key.width / kWordCodes)),
          value_columns_(tile_part(pages.value.width)) {}
    TileArithmetic(const TileArithmetic&) = delete;
    TileArithmetic& operator=(const TileArithmetic&) = delete;
    ~TileArithmetic() { release(); }

    void scores(const Left<Factor>& left, const Panels& right, const FloatSums& sums) {
        multiply<Bf16Tiles>(left, right, sums, {rows(left), key_words_, kTileWords});
    }

    void values(const Left<Factor>& left, const Panels& right, const FloatSums& sums) {
        multiply<Bf16Tiles>(left, right, sums, {rows(left), int(right.depth_words), value_columns_});
    }

    void byte_scores(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        multiply<SignedByteTiles>(left, right, sums, {rows(left), byte_key_words_, kTileWords});
    }

    void byte_values(const Left<CodeFactor>& left, const Panels& right, const IntegerSums& sums) {
        multiply<UnsignedByteTiles>(left, right, sums, {rows(left), int(right.depth_words), value_columns_});
    }

  private:
    template <class Factors>
    static int rows(const Factors& left) {
        return left.rows < kTileWords ? left.rows : kTileWords;
    }

    template <class Tiles>
    void multiply(const Left<typename Tiles::Factor>& left, const Panels& right,
                  const Sums<typename Tiles::Total>& sums, const TileShape& shape) {
        if (!(shape == configured_)) configure(shape);
        configured_ = shape;
        product<Tiles>(left, right, sums, shape);
    }

    int key_words_;
    int byte_key_words_;
    int value_columns_;
    TileShape configured_{};
};

#endif

}  // namespace
}  // namespace pagoda
