// attend.hpp: attention of one layer on packed pages and full-precision tokens: online softmax over spans of at most
// 128 tokens, nothing dequantized beyond a tile. Used by SequenceCache::attend, which has checked all arguments.
#pragma once

#include <cmath>
#include <limits>

#include "asymkv/attention/parameters.hpp"
#include "asymkv/attention/scratch.hpp"
#include "asymkv/cache/side_store.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Tokens [begin, end).
struct TokenRange {
  Index begin, end;
};

/// Attention of up to attention_rows query rows that read one kv head. Row r is query token r / group of the block's
/// first row on, query head kv_head*group + r % group.
class RowBlock {
 public:
  RowBlock(const kernels::Table& kernels, const SideStore& keys, const SideStore& values, AttentionScratch& scratch,
           Index kv_head, Index rows) noexcept
      : kernels_(kernels),
        keys_(keys),
        values_(values),
        scratch_(scratch),
        metadata_{scratch.scales(), scratch.zero_points()},
        kv_head_(kv_head),
        rows_(rows) {}

  void load_queries(const ConstTensor& queries, Index first_row, Index group, float factor) noexcept {
    std::memset(scratch_.queries(), 0, sizeof(float) * std::size_t(rows_ * scratch_.key_stride()));
    std::memset(scratch_.sums(), 0, sizeof(float) * std::size_t(rows_ * scratch_.value_stride()));
    if (values_.rotated())
      std::memset(scratch_.rotated_sums(), 0, sizeof(float) * std::size_t(rows_ * scratch_.value_stride()));
    for (Index r = 0; r < rows_; ++r) {
      const void* from = queries.row((first_row + r) / group, kv_head_ * group + (first_row + r) % group);
      float* to = scratch_.queries() + r * scratch_.key_stride();
      for (Index i = 0; i < queries.dim; ++i) to[i] = load_scalar(from, queries.type, i * queries.dim_stride) * factor;
      scratch_.running_max()[r] = -std::numeric_limits<float>::infinity();
      scratch_.running_sum()[r] = 0.0f;
    }
  }

  /// Row r sees the TokenRange visible(r), not empty; both of its ends grow with r. Spans that no row sees are skipped.
  template <class Visible>
  void run(Visible visible) noexcept {
    const Index begin = visible(0).begin, end = visible(rows_ - 1).end;
    for (Index page = first_page(keys_, begin); page < keys_.pages().size() && keys_.pages()[page].first < end;
         ++page) {
      const Index first = keys_.pages()[page].first;
      clear_scores();
      packed_scores(page);
      finish_span(first, keys_.pages()[page].count, [&](Index r) {
        const TokenRange range = visible(r);
        return TokenRange{std::max(range.begin, keys_.sinks().count()), range.end};
      });
    }
    dense_spans(keys_.dense(), keys_.sealed(), begin, end, visible);
    dense_spans(keys_.sinks(), 0, begin, end, visible);
  }

  void store_output(const Tensor& output, Index first_row, Index group) noexcept {
    for (Index r = 0; r < rows_; ++r) {
      if (values_.rotated()) add_rotated(r);
      void* to = output.row((first_row + r) / group, kv_head_ * group + (first_row + r) % group);
      const float* from = scratch_.sums() + r * scratch_.value_stride();
      const float inverse = 1.0f / scratch_.running_sum()[r];
      for (Index i = 0; i < output.dim; ++i) store_scalar(to, output.type, i * output.dim_stride, from[i] * inverse);
    }
  }

 private:
  /// Tokens of a buffer whose first is token `buffer_first`, as far as they are in [begin, end).
  template <class Visible>
  void dense_spans(const TokenBuffer& buffer, Index buffer_first, Index begin, Index end, Visible visible) noexcept {
    const Index skipped = begin > buffer_first ? (begin - buffer_first) / page_tokens * page_tokens : 0;
    const Index stop = std::min(end, buffer_first + buffer.count());
    for (Index first = buffer_first + skipped; first < stop; first += page_tokens) {
      const Index count = std::min(buffer_first + buffer.count() - first, page_tokens);
      clear_scores();
      kernels_.dense_scores(buffer.view(kv_head_, first - buffer_first, count), scratch_.key_stride(),
                            {scratch_.queries(), scratch_.key_stride(), rows_}, {scratch_.weights(), page_tokens},
                            scratch_.product());
      finish_span(first, count, visible);
    }
  }

  /// Sums of packed values, which are rotated where the values are.
  float* packed_sums() noexcept { return values_.rotated() ? scratch_.rotated_sums() : scratch_.sums(); }

  void add_rotated(Index r) noexcept {
    float* rotated = scratch_.rotated_sums() + r * scratch_.value_stride();
    float* sums = scratch_.sums() + r * scratch_.value_stride();
    rotate_hadamard(rotated, values_.dim());
    for (Index i = 0; i < values_.dim(); ++i) sums[i] += rotated[i];
  }

  void clear_scores() noexcept { std::memset(scratch_.weights(), 0, sizeof(float) * std::size_t(rows_ * page_tokens)); }

  void packed_scores(Index page) noexcept {
    const PanelLayout& layout = keys_.layout();
    const unsigned char* panel = keys_.panel(page, kv_head_);
    const Index count = keys_.pages()[page].count;
    const Index groups = (count + layout.group_size() - 1) / layout.group_size();
    const kernels::PanelView view = view_panel(kernels_, layout, panel, groups, count, layout.depth, metadata_);
    kernels_.packed_product(view, {scratch_.queries(), scratch_.key_stride(), rows_}, {scratch_.weights(), page_tokens},
                            scratch_.product());
  }

  template <class Visible>
  void finish_span(Index first, Index count, Visible visible) noexcept {
    for (Index r = 0; r < rows_; ++r) {
      const TokenRange range = visible(r);
      const Index seen = clamp(range.end - first, count), hidden = clamp(range.begin - first, seen);
      float* row = scratch_.weights() + r * page_tokens;
      for (Index i = 0; i < hidden; ++i) row[i] = -std::numeric_limits<float>::infinity();
      const float factor = kernels_.softmax(row, seen, scratch_.running_max()[r], scratch_.running_sum()[r]);
      for (Index i = round_up(seen, 16); i < page_tokens; ++i) row[i] = 0.0f;
      if (factor == 1.0f) continue;
      kernels_.multiply(scratch_.sums() + r * scratch_.value_stride(), scratch_.value_stride(), factor);
      if (values_.rotated())
        kernels_.multiply(scratch_.rotated_sums() + r * scratch_.value_stride(), scratch_.value_stride(), factor);
    }
    add_values(first, first + count);
  }

  /// sums += weights of tokens [first, end) times their values.
  void add_values(Index first, Index end) noexcept {
    Index token = first;
    if (token < values_.sinks().count()) {
      const Index stop = std::min(end, values_.sinks().count());
      dense_values(values_.sinks(), token, token, stop, first);
      token = stop;
    }
    for (Index page = first_page(values_, token); token < end && page < values_.pages().size(); ++page) {
      const Page& p = values_.pages()[page];
      const Index stop = p.first + p.count < end ? p.first + p.count : end;
      if (stop > token) packed_values(page, token, stop, first);
      token = stop > token ? stop : token;
    }
    if (token < end) dense_values(values_.dense(), token - values_.sealed(), token, end, first);
  }

  /// Tokens [token, end), of which the first is number `at` of the buffer; weights start with token `first`.
  void dense_values(const TokenBuffer& buffer, Index at, Index token, Index end, Index first) noexcept {
    kernels_.dense_sums(buffer.view(kv_head_, at, end - token), scratch_.value_stride(),
                        {scratch_.weights() + (token - first), page_tokens, rows_},
                        {scratch_.sums(), scratch_.value_stride()}, scratch_.product());
  }

  /// The page that holds `token`, or a number beyond the last. Pages are full but where the cache was trimmed, so the
  /// guess is right or just too low.
  static Index first_page(const SideStore& side, Index token) noexcept {
    const Array<Page>& pages = side.pages();
    if (pages.size() == 0) return 0;
    Index page = clamp(token - pages[0].first, token) / page_tokens;
    while (page < pages.size() && pages[page].first + pages[page].count <= token) ++page;
    return page;
  }

  static Index clamp(Index i, Index most) noexcept { return i < 0 ? 0 : i > most ? most : i; }

  void packed_values(Index page, Index token, Index stop, Index first) noexcept {
    const PanelLayout& layout = values_.layout();
    const unsigned char* panel = values_.panel(page, kv_head_);
    const Index slot = token - values_.pages()[page].first;
    const float* weights = scratch_.weights();
    if (slot != token - first) {  // the kernel wants weight i at slot i; true but where the cache was trimmed
      weights = scratch_.shifted_weights();
      for (Index r = 0; r < rows_; ++r) {
        float* to = scratch_.shifted_weights() + r * page_tokens;
        std::memset(to, 0, sizeof(float) * std::size_t(page_tokens));
        std::memcpy(to + slot, scratch_.weights() + r * page_tokens + (token - first),
                    sizeof(float) * std::size_t(stop - token));
      }
    }
    const kernels::PanelView view =
        view_panel(kernels_, layout, panel, layout.groups(), layout.lanes, slot + stop - token, metadata_);
    kernels_.packed_product(view, {weights, page_tokens, rows_}, {packed_sums(), scratch_.value_stride()},
                            scratch_.product());
  }

  const kernels::Table& kernels_;
  const SideStore& keys_;
  const SideStore& values_;
  AttentionScratch& scratch_;
  PanelMetadata metadata_;
  Index kv_head_;
  Index rows_;
};

/// Writes softmax(scale * q.K^T) V for every query; scores are kept as base-2 logarithms.
inline void attend(const kernels::Table& kernels, const SideStore& keys, const SideStore& values, Index kv_heads,
                   AttentionScratch& scratch, const ConstTensor& queries, const Tensor& output,
                   const AttentionParams& params, float scale) noexcept {
  constexpr float log2_e = 1.44269504f;
  const Index group = queries.heads / kv_heads;
  const Index length = keys.length();
  for (Index head = 0; head < kv_heads; ++head)
    for (Index row = 0; row < queries.tokens * group; row += attention_rows) {
      const Index rows = queries.tokens * group - row < attention_rows ? queries.tokens * group - row : attention_rows;
      RowBlock block(kernels, keys, values, scratch, head, rows);
      block.load_queries(queries, row, group, scale * log2_e);
      block.run([&](Index r) -> TokenRange {
        const Index own = length - queries.tokens + (row + r) / group;
        return {params.window > 0 && own >= params.window ? own - params.window + 1 : 0,
                params.causal ? own + 1 : length};
      });
      block.store_output(output, row, group);
    }
}

}  // namespace detail
ASYMKV_NAMESPACE_END
