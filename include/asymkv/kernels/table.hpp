// table.hpp: the kernels as the rest of the library sees them: plain functions, one table of them per instruction set.
// A cache keeps a pointer to the table that was chosen when it was created.
#pragma once

#include "asymkv/quantize/mixed_widths.hpp"

ASYMKV_NAMESPACE_BEGIN

/// avx2 comes with FMA and F16C; avx512 is F, BW, DQ, VL and VNNI.
enum class Isa : std::uint8_t { scalar, avx2, avx512 };
constexpr int isa_count = 3;
constexpr const char* isa_name(Isa isa) noexcept {
  constexpr const char* names[isa_count] = {"scalar", "avx2", "avx512"};
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
/// with dequantized tiles, in float.
constexpr Index few_rows = 4;

/// A panel to multiply with, or to dequantize: its metadata as floats [groups][layout.depth_stride()], and how much of
/// it to read. Rows on the left have `depth` elements, results `lanes` rounded up to 16. Mixed widths: depth is all of
/// it, and rows are padded with zeros to a multiple of 16.
struct PanelView {
  PanelLayout layout;
  const unsigned char* panel;
  const float* scales;
  const float* zero_points;  ///< null where they follow from the scales
  Index lanes;
  Index depth;
  const unsigned char* next;  ///< a panel of the same layout that will be read next, or this one
  /// Of mixed widths.
  const unsigned char* widths() const noexcept { return panel + layout.widths_offset(); }
};

/// Where the elements of a panel come from: element (lane, depth) is data[lane*lane_stride + depth*depth_stride].
struct PanelSource {
  const void* data;
  ScalarType type;
  Index lane_stride;
  Index depth_stride;
};

/// How 16 groups, one a lane, become codes. levels: the greatest code of each lane; symmetric_step: distance of levels
/// over the mean magnitude, for symmetric formats.
struct GroupCoding {
  Fit fit;
  Metadata metadata;
  ZeroPoint zero_point;
  float symmetric_step;
  float levels[16];
};

/// A batch of codes to be stored: depths batch*16 + [first, last) of lanes [lane, lane + lanes). `codes` has a row of
/// 16 for each lane from the first of lane's tile on, whole tiles.
struct CodeBatch {
  const unsigned char* codes;
  Index lane, lanes;
  Index batch, first, last;
};

/// Full-precision tokens of one kv head: [count][stride], rows padded with zeros to a multiple of 16 elements.
struct DenseView {
  const void* data;
  ScalarType type;
  Index stride;
  Index count;
};

/// Floats of scratch that suffice for a product: folded rows and their bytes, or a float tile of 32 lanes.
constexpr Index product_scratch(Index depth) noexcept { return 32 * (mixed_slots(depth) + block_depth); }

struct Table {
  Isa isa;
  /// result[r][lane] += sum over d of rows[r][d] * (code * scale + zero point)
  void (*packed_product)(const PanelView&, const Rows&, const ResultRows&, float* scratch);
  /// result[r][t] += rows[r] . token t, over `dim` elements; results are written up to count rounded up to 32.
  void (*dense_scores)(const DenseView&, Index dim, const Rows&, const ResultRows&, float* scratch);
  /// result[r][c] += sum over t of rows[r][t] * token t, for `dim` elements.
  void (*dense_sums)(const DenseView&, Index dim, const Rows&, const ResultRows&, float* scratch);
  /// Scores (base-2 logarithms; room up to count rounded up to 16) become weights exp2(score - max); max and sum run
  /// on. Returns the factor that earlier sums are to be multiplied with.
  float (*softmax)(float* scores, Index count, float& max, float& sum);
  void (*multiply)(float* data, Index count, float factor);
  /// Exact; count must be a multiple of 16 for half_to_floats.
  void (*half_to_floats)(const std::uint16_t* from, Index count, float* to);
  /// compact_scales.value of each code; count must be a multiple of 16.
  void (*compact_to_floats)(const unsigned char* codes, Index count, float* to);
  /// Dequantizes one tile of 16 lanes, depths 0..panel.depth-1: out[d][16] = fma(code, scale[d], zero point[d]).
  void (*dequantize)(const PanelView& panel, Index tile, float* out);
  /// x[lane][16]: depths 0..count-1 of `lanes` lanes as floats, zero up to 16.
  void (*gather)(const PanelSource& source, Index lanes, Index count, float* x);
  /// rotate_hadamard of each of the 16 columns of x[dim][16].
  void (*rotate_columns)(float* x, Index dim);
  /// Fits and rounds 16 groups at once, one a lane: x[count][16] -> scales[16], zero_points[16], codes[count][16].
  void (*quantize)(const GroupCoding& coding, const float* x, Index count, float* scales, float* zero_points,
                   unsigned char* codes);
  /// Variances of the 16 columns of x[count][16].
  void (*variances)(const float* x, Index count, float* result);
  /// Stores a batch of codes in a panel without mixed widths; other codes stay.
  void (*insert_codes)(const PanelLayout& layout, unsigned char* panel, const CodeBatch& batch);
  /// Stores all codes of a page of mixed widths: codes[batch of 16 channels][page_tokens][16].
  void (*pack_mixed)(const PanelLayout& layout, const PlaneOrder& order, const unsigned char* codes,
                     unsigned char* panel);
  /// Greatest magnitude as bits of the type without sign; infinities and NaN compare greater than all numbers.
  std::uint32_t (*greatest_magnitude)(const void* data, ScalarType type, Index count);
};

}  // namespace kernels

ASYMKV_NAMESPACE_END
