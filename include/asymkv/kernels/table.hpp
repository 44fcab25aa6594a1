// table.hpp: the kernels as the rest of the library sees them: plain functions, one table of them per instruction set.
// A cache keeps a pointer to the table that was chosen when it was created.
#pragma once

#include "asymkv/quantize/mixed_widths.hpp"

ASYMKV_NAMESPACE_BEGIN

/// avx2 comes with FMA, F16C and POPCNT, avxvnni with AVX-VNNI too (Alder Lake); avx512 is F, BW, DQ and VL (Skylake
/// servers), avx512vnni has VNNI and GFNI too (Ice Lake, Zen 4), amx the tile registers and their bfloat16 products
/// besides (Sapphire Rapids, Linux); neon is what every aarch64 has, neondot the dot products of armv8.2 as well
/// (Cortex-A76, Neoverse N1). The later of an architecture is better.
enum class Isa : std::uint8_t { scalar, avx2, avxvnni, avx512, avx512vnni, amx, neon, neondot };
constexpr int isa_count = 8;
constexpr const char* isa_name(Isa isa) noexcept {
  constexpr const char* names[isa_count] = {"scalar",     "avx2", "avxvnni", "avx512",
                                            "avx512vnni", "amx",  "neon",    "neondot"};
  return names[int(isa)];
}

namespace kernels {

/// Rows of floats, `stride` elements apart.
struct Rows {
  const float* data;
  Index stride;
  Index count;
};
struct ResultRows {
  float* data;
  Index stride;
};

/// At most so many rows multiply with packed codes as they are, and are rounded for it (dot.inl); more rows multiply
/// with dequantized tiles, in float (product.inl) or in tile registers (matrix.inl).
constexpr Index few_rows = 16;
/// So many are folded side by side.
constexpr Index folded_rows = 4;

/// Neighbouring panels of one page, a kv head each, to multiply with or to dequantize, and how much of them to read.
/// Rows on the left have `depth` elements and room up to a multiple of 16; results have `lanes` rounded up to 16.
/// Mixed widths: depth is layout.slots(), each panel has its rows in the order of its slots, and all page_tokens lanes
/// of a row of results are added to.
struct PanelView {
  PanelLayout layout;
  const unsigned char* panel;
  Index bytes;  ///< layout.bytes()
  Index count;  ///< panels
  Index lanes;
  Index depth;
  const unsigned char*
      next;  ///< where as many panels of this layout lie that are read next; these where there are none

  PanelView single(Index i) const noexcept { return {layout, panel + i * bytes, bytes, 1, lanes, depth, ahead(i)}; }
  /// The panel to ask memory for while panel i is read.
  const unsigned char* ahead(Index i) const noexcept {
    constexpr Index distance = 3;
    const Index at = i + distance;
    return at < count ? panel + at * bytes : next + (at - count) % count * bytes;
  }
};

/// Metadata of a panel as floats, [groups][layout.depth_stride()].
struct PanelMetadata {
  float* scales;
  float* zero_points;
};

/// Where the elements of a panel come from: element (lane, depth) is data[lane*lane_stride + depth*depth_stride].
struct PanelSource {
  const void* data;
  ScalarType type;
  Index lane_stride;
  Index depth_stride;
};

/// How groups of 16 columns become codes. levels: the greatest code of each column, one for all where the fit is
/// min-max; symmetric_step: distance of levels over the mean magnitude, for symmetric formats.
struct GroupCoding {
  Fit fit;
  Metadata metadata;
  ZeroPoint zero_point;
  float symmetric_step;
  float levels[16];
};

/// Lanes that are quantized together: as many as a page has tokens, and groups of them, which have 32 at least.
constexpr Index most_lanes = page_tokens;
constexpr Index most_groups = most_lanes / 32;

/// 16 columns to be quantized, a depth each; their rows are lanes [first, first + count), which lie between two
/// neighbouring multiples of most_lanes.
struct Columns {
  const float* data;  ///< [count][stride]
  Index stride;
  Index first, count;
  Index group_size;

  Index groups() const noexcept { return (first % group_size + count + group_size - 1) / group_size; }
  /// Row where group g begins, less than 0 where its first lanes are not here.
  Index group_begin(Index g) const noexcept { return g * group_size - first % group_size; }
};

/// Depths batch*16 + [first, last) of a panel.
struct DepthBatch {
  Index batch, first, last;

  Index begin() const noexcept { return batch * tile_lanes + first; }
  Index count() const noexcept { return last - first; }
};

/// A batch of codes to be stored, of lanes [lane, lane + lanes). `codes` has a row of 16 for each lane from the first
/// of lane's tile on, whole tiles.
struct CodeBatch {
  const unsigned char* codes;
  Index lane, lanes;
  DepthBatch depths;
};

/// Full-precision tokens of one kv head: [count][stride], rows padded with zeros to a multiple of 16 elements.
struct DenseView {
  const void* data;
  ScalarType type;
  Index stride;
  Index count;
};

/// Elements of a row that is rounded for few rows: 64 at once.
constexpr Index padded_depth(Index depth) noexcept { return round_up(depth, 64); }

/// Floats of scratch that such a row needs: elements, and three bytes of each.
constexpr Index row_scratch(const PanelLayout& layout) noexcept { return padded_depth(layout.depth) / 4 * 7; }
/// Rows that are multiplied together in tile registers (matrix.inl).
constexpr Index matrix_rows = 32;
/// Floats of scratch that products of panels need: of folded rows; or the metadata and a tile of 32 lanes; or the
/// metadata, all codes and some rows in pairs of bfloat16. The same for all instruction sets.
constexpr Index product_scratch(const PanelLayout& layout) noexcept {
  const Index depth = round_up(layout.depth, block_depth), metadata = 2 * layout.metadata_count();
  return std::max({folded_rows * row_scratch(layout), metadata + 32 * depth,
                   metadata + depth * (round_up(layout.lanes, tile_lanes) / 2 + matrix_rows)});
}
/// Floats of scratch that dense_scores and dense_sums need: a tile of 32 lanes. `depth` is dim or the count of tokens.
constexpr Index dense_scratch(Index depth) noexcept { return 32 * round_up(depth, block_depth); }

/// result[r][lane] += sum over d of rows[r][d] * (code * scale + zero point), with rows and results of panel i behind
/// those of panel i - 1. `scratch` has product_scratch floats.
using PackedProduct = void (*)(const PanelView&, const Rows&, const ResultRows&, float* scratch);

/// What is done to the products of one query with tokens before the softmax (AttentionParams), in base 2 but the mask:
/// 0 or null where nothing is.
struct ScoreTerms {
  float softcap = 0.0f;
  float slope = 0.0f;           ///< subtracted for each token between the query's own and the scored one
  float distance = 0.0f;        ///< own token number less that of the first score
  const float* mask = nullptr;  ///< all below -2^100 hide
};

struct Table {
  Isa isa;
  /// For up to few_rows rows: they are rounded and multiply with the codes in whole numbers.
  PackedProduct few_rows_product;
  /// For any number of rows: panels are dequantized tile by tile, which pays once many rows share a tile.
  PackedProduct many_rows_product;
  Index few_rows_of_8_bits;  ///< few_rows, or less where codes of 8 bits are slow to multiply with
  /// result[r][t] += rows[r] . token t, over `dim` elements; results are written up to count rounded up to 32.
  void (*dense_scores)(const DenseView&, Index dim, const Rows&, const ResultRows&, float* scratch);
  /// result[r][c] += sum over t of rows[r][t] * token t, for `dim` elements.
  void (*dense_sums)(const DenseView&, Index dim, const Rows&, const ResultRows&, float* scratch);
  /// Whether none of the numbers is greater than 2^100 or NaN.
  bool (*is_mask)(const void* data, ScalarType type, Index count);
  /// Products become scores; room up to count rounded up to 16, of the mask too.
  void (*add_terms)(float* scores, Index count, const ScoreTerms& terms);
  /// Scores (base-2 logarithms; room up to count rounded up to 16) become weights exp2(score - max); max and sum run
  /// on. Returns the factor that earlier sums are to be multiplied with.
  float (*softmax)(float* scores, Index count, float& max, float& sum);
  void (*multiply)(float* data, Index count, float factor);
  /// Reads the metadata of one panel as far as lanes go; zero points of symmetric formats too.
  void (*expand_metadata)(const PanelView& panel, const PanelMetadata& metadata);
  /// Dequantizes one tile of 16 lanes of one panel, depths 0..panel.depth-1: out[d][16] = fma(code, scale[d], zero
  /// point[d]). Mixed widths: slots instead of depths.
  void (*dequantize)(const PanelView& panel, const PanelMetadata& metadata, Index tile, float* out);
  /// x[lane][16]: depths 0..count-1 of `lanes` lanes as floats, zero up to 16.
  void (*gather)(const PanelSource& source, Index lanes, Index count, float* x);
  /// rotate_hadamard of each of the 16 columns of x[dim][16].
  void (*rotate_columns)(float* x, Index dim);
  /// Fits and rounds 16 groups at once, one a column: scales[groups][16], zero_points[groups][16], codes[count][16].
  void (*quantize)(const GroupCoding& coding, const Columns& x, float* scales, float* zero_points,
                   unsigned char* codes);
  /// Stores scales and zero points number first..first+count-1 of a panel; at most 16.
  void (*store_metadata)(const PanelLayout& layout, unsigned char* panel, Index first, Index count, const float* scales,
                         const float* zero_points);
  /// Variances of the 16 columns of x[count][16].
  void (*variances)(const float* x, Index count, float* result);
  /// Stores a batch of codes in a panel without mixed widths; other codes stay.
  void (*insert_codes)(const PanelLayout& layout, unsigned char* panel, const CodeBatch& batch);
  /// Fits, rounds and stores a batch of a min-max panel, all lanes of it, whose number is a multiple of 16. They lie
  /// side by side in memory: source.lane_stride is 1.
  void (*write_rows)(const PanelLayout& layout, unsigned char* panel, const PanelSource& source,
                     const DepthBatch& depths);
  /// Stores all codes of a page of mixed widths: codes[batch of 16 channels][page_tokens][16].
  void (*pack_mixed)(const PanelLayout& layout, const ChannelOrder& order, const unsigned char* codes,
                     unsigned char* panel);
  /// `count` finite elements, rounded to nearest even; infinities too where they become f32.
  void (*convert)(const void* from, ScalarType from_type, void* to, ScalarType to_type, Index count);
  /// Greatest magnitude as bits of the type without sign; infinities and NaN compare greater than all numbers.
  std::uint32_t (*greatest_magnitude)(const void* data, ScalarType type, Index count);

  /// Rows up to which few_rows_product is faster.
  Index few_rows_of(const Format& format) const {
    return format.bits == 8 && !format.mixed() ? few_rows_of_8_bits : few_rows;
  }
  void packed_product(const PanelView& panels, const Rows& rows, const ResultRows& result, float* scratch) const {
    (rows.count <= few_rows_of(panels.layout.format) ? few_rows_product : many_rows_product)(panels, rows, result,
                                                                                             scratch);
  }
  /// This table for an instruction set that has one kernel of its own.
  constexpr Table with_few_rows(Isa better, PackedProduct product) const {
    Table table = *this;
    table.isa = better;
    table.few_rows_product = product;
    table.few_rows_of_8_bits = few_rows;
    return table;
  }
  constexpr Table with_many_rows(Isa better, PackedProduct product) const {
    Table table = *this;
    table.isa = better;
    table.many_rows_product = product;
    return table;
  }
};

}  // namespace kernels

ASYMKV_NAMESPACE_END
