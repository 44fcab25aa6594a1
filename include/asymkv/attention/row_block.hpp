// row_block.hpp: attention of some query rows on packed pages and full-precision tokens: online softmax over spans of
// at most 128 tokens, nothing dequantized beyond a tile. Used by attend.hpp.
#pragma once

#include <cstring>

#include "asymkv/attention/call.hpp"
#include "asymkv/attention/scratch.hpp"
#include "asymkv/cache/side_store.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// kv heads [first, first + count).
struct HeadRange {
  Index first, count;
};

/// Query rows [first, first + count) of a kv head.
struct RowRange {
  Index first, count;
};

/// Attention of some query rows of each of some kv heads, attention_rows in all at most, over some of the tokens. Pages
/// are read in the order of memory: all heads of one, then the next.
class RowBlock {
 public:
  RowBlock(const kernels::Table& kernels, const SideStore& keys, const SideStore& values, const AttentionCall& call,
           const AttentionScratch& scratch, HeadRange heads, RowRange rows, TokenRange tokens) noexcept
      : kernels_(kernels),
        keys_(keys),
        values_(values),
        call_(call),
        scratch_(scratch),
        heads_(heads),
        first_(rows.first),
        rows_(rows.count),
        tokens_(tokens),
        rotated_(values.pages().rotated()) {}

  /// Spans that no row sees are skipped.
  void run() noexcept {
    load_queries();
    const Index begin = visible(0).begin, end = visible(rows_ - 1).end;
    const Index behind_sinks = std::max(keys_.sinks().count(), call_.removed().end);
    const Index kept = std::max(begin, behind_sinks);
    for (Index page = first_page(keys_, kept); page < keys_.pages().size() && keys_.pages()[page].first < end; ++page) {
      packed_scores(page);
      finish_span(keys_.pages()[page].first, keys_.pages()[page].count, behind_sinks);
    }
    dense_spans(keys_.dense(), keys_.sealed(), {kept, end}, behind_sinks);
    dense_spans(keys_.sinks(), 0, {begin, end}, 0);
  }

  void store_output() noexcept {
    each_head([&] {
      for (Index r = 0; r < rows_; ++r) {
        add_rotated(r);
        call_.store(head_, first_ + r, sums().row(r), running_max()[r], running_sum()[r]);
      }
    });
  }

  /// Of one head: what merging with other tokens' sums needs.
  void store_partial(const PartialRows& partial) noexcept {
    each_head([&] {
      for (Index r = 0; r < rows_; ++r) add_rotated(r);
      const std::size_t bytes = sizeof(float) * std::size_t(rows_);
      std::memcpy(partial.sums.data, sums().data, bytes * std::size_t(partial.sums.stride));
      std::memcpy(partial.max, running_max(), bytes);
      std::memcpy(partial.sum, running_sum(), bytes);
    });
  }

 private:
  /// Calls function() for each head, which head_ then is.
  template <class Function>
  void each_head(Function function) noexcept {
    for (head_ = heads_.first; head_ < heads_.first + heads_.count; ++head_) function();
  }

  void load_queries() noexcept {
    each_head([&] {
      clear(queries());
      ordered_by_[head_ - heads_.first] = nullptr;
      clear(sums());
      if (rotated_) clear(rotated_sums());
      for (Index r = 0; r < rows_; ++r) {
        call_.load_query(head_, first_ + r, queries().row(r));
        running_max()[r] = -std::numeric_limits<float>::infinity();
        running_sum()[r] = 0.0f;
      }
    });
  }

  TokenRange visible(Index r) const noexcept {
    const TokenRange range = call_.visible(first_ + r);
    return {std::max(range.begin, tokens_.begin), std::min(range.end, tokens_.end)};
  }

  /// What a head's rows have in scratch, those of all heads one after another.
  Index first_row() const noexcept { return (head_ - heads_.first) * rows_; }
  ScratchRows queries() noexcept { return scratch_.queries(first_row()); }
  ScratchRows sums() noexcept { return scratch_.sums(first_row()); }
  ScratchRows rotated_sums() noexcept { return scratch_.rotated_sums(first_row()); }
  ScratchRows weights() noexcept { return scratch_.weights(first_row()); }
  ScratchRows shifted_weights() noexcept { return scratch_.shifted_weights(first_row()); }
  float* running_max() noexcept { return scratch_.running_max() + first_row(); }
  float* running_sum() noexcept { return scratch_.running_sum() + first_row(); }
  void clear(const ScratchRows& rows) noexcept {
    std::memset(rows.data, 0, sizeof(float) * std::size_t(rows_ * rows.stride));
  }
  kernels::Rows left(const ScratchRows& rows, Index first = 0) const noexcept {
    return {rows.data + first, rows.stride, rows_};
  }

  /// Tokens of a buffer whose first is token `buffer_first`, as far as they are in the range; weights of those before
  /// token `begin` are 0.
  void dense_spans(const TokenBuffer& buffer, Index buffer_first, const TokenRange& range, Index begin) noexcept {
    const Index buffer_end = buffer_first + buffer.count(), stop = std::min(range.end, buffer_end);
    Index first = std::max(buffer_first, range.begin / page_tokens * page_tokens);
    for (Index count = 0; first < stop; first += count) {
      count = std::min(buffer_end, (first / page_tokens + 1) * page_tokens) - first;
      each_head([&] {
        clear(weights());
        kernels_.dense_scores(buffer.view(head_, first - buffer_first, count), queries().stride, left(queries()),
                              weights(), scratch_.kernel());
      });
      finish_span(first, count, begin);
    }
  }

  void add_rotated(Index r) noexcept {
    if (!rotated_) return;
    float* rotated = rotated_sums().row(r);
    float* to = sums().row(r);
    rotate_hadamard(rotated, values_.dim());
    for (Index i = 0; i < values_.dim(); ++i) to[i] += rotated[i];
  }

  /// The panels of a page, with the first of those to be read next.
  kernels::PanelView view(const SideStore& side, Index page, Index lanes, Index depth) noexcept {
    const PageFormat& format = side.pages().format(page);
    const unsigned char* panels = side.pages().panel(page, heads_.first);
    const bool more = page + 1 < side.pages().size();
    return {format.layout,
            panels,
            format.panel_bytes,
            heads_.count,
            lanes,
            depth,
            more ? side.pages().panel(page + 1, heads_.first) : panels};
  }

  void packed_scores(Index page) noexcept {
    const PanelLayout& layout = keys_.pages().format(page).layout;
    const bool mixed = layout.format.mixed();
    each_head([&] {
      clear(weights());
      if (mixed) order_queries(page);
    });
    kernels_.packed_product(view(keys_, page, keys_.pages()[page].count, layout.slots()),
                            left(mixed ? scratch_.ordered_queries(0) : scratch_.queries(0)), scratch_.weights(0),
                            scratch_.kernel());
  }

  /// Puts the queries of a head in the order of a page's channels, which mostly is that of the page before.
  void order_queries(Index page) noexcept {
    const PanelLayout& layout = keys_.pages().format(page).layout;
    const unsigned char* widths = keys_.pages().panel(page, head_) + layout.widths_offset();
    const unsigned char*& ordered_by = ordered_by_[head_ - heads_.first];
    const bool ordered =
        ordered_by != nullptr && std::memcmp(ordered_by, widths, std::size_t(layout.widths_bytes())) == 0;
    ordered_by = widths;
    if (ordered) return;
    const ChannelOrder order = read_channel_order(layout, widths);
    const ScratchRows ordered_rows = scratch_.ordered_queries(first_row());
    for (Index r = 0; r < rows_; ++r) {
      const float* from = queries().row(r);
      float* to = ordered_rows.row(r);
      for (Index slot = 0; slot < layout.slots(); ++slot) to[slot] = from[order.channels[slot]];
    }
  }

  /// Products with tokens [first, first + count) become weights, 0 of those before token `begin`, and their values are
  /// added.
  void finish_span(Index first, Index count, Index begin) noexcept {
    each_head([&] {
      for (Index r = 0; r < rows_; ++r) {
        const TokenRange range = visible(r);
        const Index seen = clamp(range.end - first, count);
        const Index hidden = clamp(std::max(range.begin, begin) - first, seen);
        float* row = weights().row(r);
        if (call_.has_terms()) call_.add_terms(kernels_, head_, first_ + r, first, seen, row);
        for (Index i = 0; i < hidden; ++i) row[i] = -std::numeric_limits<float>::infinity();
        const float factor = kernels_.softmax(row, seen, running_max()[r], running_sum()[r]);
        for (Index i = round_up(seen, 16); i < page_tokens; ++i) row[i] = 0.0f;
        if (factor == 1.0f) continue;
        kernels_.multiply(sums().row(r), sums().stride, factor);
        if (rotated_) kernels_.multiply(rotated_sums().row(r), sums().stride, factor);
      }
    });
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
    if (token >= call_.removed().begin) token = std::max(token, call_.removed().end);
    for (Index page = first_page(values_, token); token < end && page < values_.pages().size(); ++page) {
      const Page& p = values_.pages()[page];
      const Index stop = std::min(p.end(), end);
      if (stop > token) packed_values(page, token, stop, first);
      token = stop > token ? stop : token;
    }
    if (token < end) dense_values(values_.dense(), token - values_.sealed(), token, end, first);
  }

  /// Tokens [token, end), of which the first is number `at` of the buffer; weights start with token `first`.
  void dense_values(const TokenBuffer& buffer, Index at, Index token, Index end, Index first) noexcept {
    each_head([&] {
      kernels_.dense_sums(buffer.view(head_, at, end - token), sums().stride, left(weights(), token - first), sums(),
                          scratch_.kernel());
    });
  }

  /// The page that holds `token`, or a number beyond the last. Pages are full but where the cache was trimmed, so the
  /// guess is right or just too low.
  static Index first_page(const SideStore& side, Index token) noexcept {
    const PageTable& pages = side.pages();
    if (pages.size() == 0) return 0;
    Index page = clamp(token - pages[0].first, token) / page_tokens;
    while (page < pages.size() && pages[page].end() <= token) ++page;
    return page;
  }

  static Index clamp(Index i, Index most) noexcept { return i < 0 ? 0 : i > most ? most : i; }

  void packed_values(Index page, Index token, Index stop, Index first) noexcept {
    const PanelLayout& layout = values_.pages().format(page).layout;
    const Index slot = token - values_.pages()[page].first;
    const bool aligned = slot == token - first;
    if (!aligned)  // the kernel wants weight i at slot i; true but where the cache was trimmed
      each_head([&] {
        clear(shifted_weights());
        for (Index r = 0; r < rows_; ++r)
          std::memcpy(shifted_weights().row(r) + slot, weights().row(r) + (token - first),
                      sizeof(float) * std::size_t(stop - token));
      });
    kernels_.packed_product(view(values_, page, layout.lanes, slot + stop - token),
                            left(aligned ? scratch_.weights(0) : scratch_.shifted_weights(0)),
                            layout.format.rotation != Rotation::none ? scratch_.rotated_sums(0) : scratch_.sums(0),
                            scratch_.kernel());
  }

  const kernels::Table& kernels_;
  const SideStore& keys_;
  const SideStore& values_;
  const AttentionCall& call_;
  const AttentionScratch& scratch_;
  HeadRange heads_;
  Index first_, rows_;
  TokenRange tokens_;
  bool rotated_;  ///< whether some values are
  Index head_ = 0;
  const unsigned char* ordered_by_[attention_rows] = {};  ///< widths by which a head's queries are ordered
};

}  // namespace detail
ASYMKV_NAMESPACE_END
