// side_store.hpp: all tokens of one side (keys or values) of one layer: sinks, sealed pages, then full-precision
// tokens. Knows when tokens fall due for sealing (paper section 3). Used by SequenceCache; read by the attention.
#pragma once

#include <algorithm>
#include <limits>

#include "asymkv/cache/token_buffer.hpp"
#include "asymkv/quantize/panel_writer.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How a side is kept. A packed side keeps the input's type in its window; others convert to `type` on the way in.
struct SideConfig {
  Side side = Side::keys;
  Format format;
  ScalarType type = ScalarType::f32;  ///< of sides that are not packed
  Index heads = 0, dim = 0;
  Index residual_length = 128;
  Index reserve_tokens = 0;
  Index sink_length = 0;  ///< of packed sides
};

/// Up to page_tokens sealed tokens of all kv heads: one panel a head. Codes never change once written.
struct Page {
  unsigned char* data = nullptr;  ///< of SideStore::page_bytes()
  Buffer own;                     ///< where data is not in the reserve
  Index first = 0;                ///< token of slot 0
  Index count = 0;                ///< slots in use; those of sinks, in the first page, are empty
};

class SideStore {
 public:
  explicit SideStore(const SideConfig& config) noexcept : config_(config) {
    if (packed())
      layout_ = page_layout(config.format, config.side, config.dim), panel_bytes_ = layout_.bytes();
    else
      config_.sink_length = 0;
    dense_.configure(config.type, config.heads, config.dim);
  }

  bool packed() const noexcept { return config_.format.packed(); }
  Side side() const noexcept { return config_.side; }
  Index dim() const noexcept { return config_.dim; }
  const PanelLayout& layout() const noexcept { return layout_; }
  const Array<Page>& pages() const noexcept { return pages_; }
  bool rotated() const noexcept { return packed() && config_.format.rotation == Rotation::hadamard; }
  /// First tokens of the sequence, kept in full precision for good.
  const TokenBuffer& sinks() const noexcept { return sinks_; }
  /// Last tokens: the window of a packed side, all tokens of others.
  const TokenBuffer& dense() const noexcept { return dense_; }
  /// Sinks and sealed tokens: the first token of dense().
  Index sealed() const noexcept {
    return used_pages_ == 0 ? sinks_.count() : pages_[used_pages_ - 1].first + pages_[used_pages_ - 1].count;
  }
  Index length() const noexcept { return sealed() + dense_.count(); }
  const unsigned char* panel(Index page, Index head) const noexcept { return pages_[page].data + head * panel_bytes_; }
  /// layout().bytes(), which takes a while to compute.
  Index panel_bytes() const noexcept { return panel_bytes_; }
  Index page_bytes() const noexcept { return config_.heads * panel_bytes_; }
  Index table_bytes() const noexcept { return pages_.bytes(); }
  /// Of pages in use.
  Index sealed_bytes() const noexcept { return pages_.size() * page_bytes(); }
  /// Of pages that are not yet in use.
  Index reserved_bytes() const noexcept {
    const Index used = pages_.size() * page_bytes();
    return used < reserve_.bytes() ? reserve_.bytes() - used : 0;
  }
  /// Greatest magnitude appended since the side was last empty.
  float greatest() const noexcept { return greatest_; }
  void note_greatest(float magnitude) noexcept { greatest_ = magnitude > greatest_ ? magnitude : greatest_; }

  /// Largest magnitude that the side holds.
  float limit() const noexcept {
    if (packed()) return magnitude_limit(config_.format, config_.dim);
    if (config_.type == ScalarType::f32) return std::numeric_limits<float>::max();
    return config_.type == ScalarType::f16 ? 65504.0f : 0x1.FEp127f;
  }

  /// Tokens that the next append seals: keys in runs of R, of which sinks shorten the first; values all but the last R.
  Index due() const noexcept {
    const Index r = config_.residual_length, sinks = used_pages_ == 0 ? sinks_.count() : 0;
    if (!packed()) return 0;
    const Index end = config_.side == Side::keys ? (sinks + dense_.count()) / r * r : sinks + dense_.count() - r;
    return end > sinks ? end - sinks : 0;
  }

  /// Gets all memory that sealing what is due and appending `tokens` of `type` needs. False if there is none; cancel()
  /// then gives back what was got.
  [[nodiscard]] bool prepare(Index tokens, ScalarType type, const Allocator& allocator) noexcept {
    if (packed()) take_type(type);
    const Index pages = pages_for(due());
    const Index size = pages_.size() + pages;
    if (size > pages_.capacity() &&
        !pages_.reserve(size > 2 * pages_.capacity() ? size : 2 * pages_.capacity(), allocator))
      return false;
    for (Index i = 0; i < pages; ++i) {
      Page page;
      if (!set_memory(page, allocator)) return false;
      pages_.push(std::move(page));
    }
    if (tokens == 0) return true;
    if (reserve_.bytes() == 0 &&  // the table last, since it stays
        (!next_reserve_.allocate_unset(pages_to_reserve() * page_bytes(), allocator) ||
         !pages_.reserve(pages_to_reserve(), allocator)))
      return false;
    if (sinks_.capacity() < config_.sink_length &&
        !next_sinks_.allocate(sinks_.bytes_for(config_.sink_length), allocator))
      return false;
    next_capacity_ = capacity_for(dense_.count() - due(), tokens - sinks_missing(tokens));
    return next_capacity_ == dense_.capacity() || next_memory_.allocate(dense_.bytes_for(next_capacity_), allocator);
  }
  /// Nothing where nothing was prepared since the last seal(), trim() or clear().
  void cancel() noexcept {
    pages_.shrink(used_pages_);
    next_reserve_ = Buffer();
    next_memory_ = Buffer();
    next_sinks_ = Buffer();
  }

  /// Quantizes what is due; requires prepare(). `scratch` has writer_scratch floats.
  void seal(const kernels::Table& kernels, float* scratch) noexcept {
    Index remaining = due();
    bool open = remaining > 0 && used_pages_ > 0 && slots_left(pages_[used_pages_ - 1]) > 0;
    for (; remaining > 0; open = false) {
      if (!open) open_page();
      Page& to = pages_[used_pages_ - 1];
      const Index tokens = remaining < page_tokens - to.count ? remaining : page_tokens - to.count;
      for (Index head = 0; head < config_.heads; ++head) seal_head(kernels, to, head, tokens, scratch);
      to.count += tokens;
      dense_.drop_front(tokens);
      remaining -= tokens;
    }
  }

  /// Adds tokens at the back; requires prepare() with as many, and seal().
  void append(const kernels::Table& kernels, const ConstTensor& tokens) noexcept {
    if (tokens.tokens == 0) return;
    if (next_reserve_.bytes() > 0) reserve_ = std::move(next_reserve_);
    if (next_sinks_.bytes() > 0) sinks_.adopt(std::move(next_sinks_), config_.sink_length);
    if (next_memory_.bytes() > 0) dense_.adopt(std::move(next_memory_), next_capacity_);
    const Index first = sinks_missing(tokens.tokens);
    ConstTensor part = tokens;
    part.tokens = first;
    sinks_.append(kernels, part);
    part.tokens = tokens.tokens - first;
    part.data = tokens.row(first, 0);
    dense_.append(kernels, part);
  }

  /// Drops tokens from `tokens` on. A page that is cut inside a group of keys takes no more tokens.
  void trim(Index tokens) noexcept {
    if (tokens == 0) greatest_ = 0.0f;
    if (tokens >= sealed()) {
      dense_.truncate(tokens - sealed());
      return;
    }
    dense_.truncate(0);
    while (pages_.size() > 0 && (tokens <= sinks_.count() || pages_.back().first >= tokens))
      pages_.shrink(pages_.size() - 1);
    if (pages_.size() > 0) pages_.back().count = tokens - pages_.back().first;
    if (tokens < sinks_.count()) sinks_.truncate(tokens);
    used_pages_ = pages_.size();
  }

  void clear() noexcept {
    pages_.reset();
    reserve_ = Buffer();
    used_pages_ = 0;
    sinks_.reset();
    dense_.reset();
    greatest_ = 0.0f;
  }

  /// Dequantized tokens [first, first + out.tokens) of one head. `scratch` is read_panel's, `row` another of dim
  /// floats.
  void read(const kernels::Table& kernels, Index head, Index first, const Tensor& out, float* scratch,
            float* row) const noexcept {
    Index token = first;
    const Index end = first + out.tokens;
    for (; token < end && token < sinks_.count(); ++token) read_dense(sinks_, head, token, out, token - first);
    for (Index p = 0; p < pages_.size() && token < end; ++p) {
      const Page& page = pages_[p];
      if (page.first + page.count <= token) continue;
      const Index stop = page.first + page.count < end ? page.first + page.count : end;
      read_page(kernels, p, head, token, stop - token, out, token - first, scratch, row);
      token = stop;
    }
    for (; token < end; ++token) read_dense(dense_, head, token - sealed(), out, token - first);
  }

 private:
  /// Tokens of an append that go to the sinks.
  Index sinks_missing(Index tokens) const noexcept {
    const Index missing = config_.sink_length - sinks_.count();
    return missing < tokens ? missing : tokens;
  }
  /// The window and the sinks keep the input's type, which may change when they are empty.
  void take_type(ScalarType type) noexcept {
    for (TokenBuffer* buffer : {&sinks_, &dense_})
      if (buffer->count() == 0) {
        if (type != buffer->type()) buffer->reset();
        buffer->configure(type, config_.heads, config_.dim);
      }
  }
  void read_dense(const TokenBuffer& buffer, Index head, Index token, const Tensor& out, Index at) const noexcept {
    const kernels::DenseView row = buffer.view(head, token, 1);
    for (Index i = 0; i < config_.dim; ++i)
      store_scalar(out.data, out.type, at * out.token_stride + i * out.dim_stride, load_scalar(row.data, row.type, i));
  }
  void read_page(const kernels::Table& kernels, Index page, Index head, Index token, Index count, const Tensor& out,
                 Index at, float* scratch, float* row) const noexcept {
    const Index slot = token - pages_[page].first;
    if (!rotated()) return read_panel(kernels, config_.side, layout_, panel(page, head), slot, count, out, at, scratch);
    for (Index i = 0; i < count; ++i) {
      const Tensor rotated_row{row, ScalarType::f32, 1, 1, config_.dim, config_.dim, config_.dim, 1};
      read_panel(kernels, config_.side, layout_, panel(page, head), slot + i, 1, rotated_row, 0, scratch);
      rotate_hadamard(row, config_.dim);
      for (Index c = 0; c < config_.dim; ++c)
        store_scalar(out.data, out.type, (at + i) * out.token_stride + c * out.dim_stride, row[c]);
    }
  }
  /// Slots of a page that may still take tokens.
  Index slots_left(const Page& page) const noexcept {
    if (config_.side == Side::keys && page.count % config_.format.group_size != 0) return 0;
    return page_tokens - page.count;
  }
  /// Fresh pages that sealing so many tokens needs.
  Index pages_for(Index tokens) const noexcept {
    if (tokens == 0) return 0;
    const Index behind =
        used_pages_ == 0 ? tokens + sinks_.count() % page_tokens : tokens - slots_left(pages_[used_pages_ - 1]);
    return behind <= 0 ? 0 : (behind + page_tokens - 1) / page_tokens;
  }
  /// Pages of a side of reserve_tokens tokens: those of what was sealed before its last one came.
  Index pages_to_reserve() const noexcept {
    const Index r = config_.residual_length, before = config_.reserve_tokens - 1;
    if (!packed() || before < r) return 0;
    const Index end = config_.side == Side::keys ? before / r * r : before - r;
    if (end <= config_.sink_length) return 0;
    const Index first = config_.sink_length / page_tokens;  // of which a whole page would be empty
    return (end + page_tokens - 1) / page_tokens - first;
  }
  /// Gives the next page zeros, of the reserve while that lasts.
  [[nodiscard]] bool set_memory(Page& page, const Allocator& allocator) noexcept {
    const Index at = pages_.size() * page_bytes();
    if (at < reserve_.bytes()) {
      page.data = reserve_.data() + at;
      std::memset(page.data, 0, std::size_t(page_bytes()));
      return true;
    }
    if (!page.own.allocate(page_bytes(), allocator)) return false;
    page.data = page.own.data();
    return true;
  }
  /// Takes the next prepared page. Slots of the first one count from token 0 on, so that pages of keys and values are
  /// aligned with each other and with those of caches without sinks.
  void open_page() noexcept {
    const Index token = sealed();
    Page& page = pages_[used_pages_];
    page.first = used_pages_ == 0 ? token / page_tokens * page_tokens : token;
    page.count = token - page.first;
    ++used_pages_;
  }
  /// Tokens to have room for when `kept` stay in full precision and a step adds `fresh`. A window is sized for such
  /// steps, R + 32 at least. Values leave it as they come, so it has room for up to two more steps, of R tokens at
  /// most: then not each one moves what stays to the front, but every third. It keeps its size for steps that it holds,
  /// unless it has R / 2 tokens too many for them. Other sides grow by half.
  Index capacity_for(Index kept, Index fresh) const noexcept {
    const Index tokens = kept + fresh, now = dense_.capacity();
    if (packed()) {
      const Index r = config_.residual_length, usual = r + 32;
      const Index more = config_.side == Side::values ? std::min(2 * fresh, r) : 0;
      const Index wanted = fresh < r ? std::max({usual, tokens, r + fresh + more}) : std::max(usual, tokens);
      return now >= std::max(usual, tokens) && now <= wanted + r / 2 ? now : wanted;
    }
    if (tokens <= now) return now;
    return std::max({tokens, now + now / 2, config_.reserve_tokens});
  }
  void seal_head(const kernels::Table& kernels, Page& page, Index head, Index tokens, float* scratch) noexcept {
    const kernels::DenseView from = dense_.view(head, 0, tokens);
    const kernels::PanelSource source = panel_source(config_.side, from.data, from.type, from.stride, 1);
    unsigned char* panel = page.data + head * panel_bytes_;
    if (layout_.format.mixed()) {
      const unsigned char* previous = used_pages_ > 1 ? this->panel(used_pages_ - 2, head) : nullptr;
      return write_mixed_panel(kernels, layout_, previous, panel, source, page.count, tokens, scratch);
    }
    const PanelRange range = config_.side == Side::keys ? PanelRange{page.count, tokens, 0, config_.dim}
                                                        : PanelRange{0, config_.dim, page.count, tokens};
    write_panel(kernels, layout_, panel, source, range, scratch);
  }

  SideConfig config_;
  PanelLayout layout_;
  Index panel_bytes_ = 0;
  TokenBuffer sinks_;
  Buffer reserve_;  ///< memory of the first pages
  Array<Page> pages_;
  TokenBuffer dense_;
  float greatest_ = 0.0f;
  Index used_pages_ = 0;  ///< pages_ has more between prepare and seal
  // between prepare and append
  Index next_capacity_ = 0;
  Buffer next_reserve_;
  Buffer next_memory_;
  Buffer next_sinks_;
};

ASYMKV_NAMESPACE_END
