// requantization.hpp: gives sealed pages of one side fewer bits, so that memory comes free: from what the pages read
// back as, in place, or in a copy where forks share the page. Used by SequenceCache.
#pragma once

#include "asymkv/attention/scratch.hpp"
#include "asymkv/cache/page_table.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Pages that are complete, lie in the range, and would become smaller are requantized; all others stay.
class Requantization {
 public:
  /// Keeps a reference to the pages, whose first token is `sinks` at least. `tokens` ends before those that may still
  /// be unsealed.
  Requantization(PageTable& pages, Index sinks, const Format& format, const TokenRange& tokens) noexcept
      : pages_(pages), sinks_(sinks), format_(page_layout(format, pages.side(), pages.dim())), tokens_(tokens) {}

  bool concerns_any() const noexcept {
    Index page = 0;
    while (page < pages_.size() && !concerns(page)) ++page;
    return page < pages_.size();
  }
  /// Whether the table has the format, or a place that no page's format has.
  bool has_room() const noexcept { return pages_.has_room(format_.layout.format); }
  /// Bytes of fresh memory that it takes, for the shared pages' copies.
  Index bytes() const noexcept {
    return copies() * (SharedBuffer::header_bytes + page_bytes() + Index(sizeof(SharedBuffer)));
  }

  /// Gets the memory; false if there is none. Where no block can shrink, a smaller one must be there for the first page
  /// to move to: else bits would be lost for nothing. cancel() gives all back.
  [[nodiscard]] bool prepare(const Allocator& allocator) noexcept {
    const Index count = copies();
    if (!pages_.next_copies_.reserve(count, allocator)) return false;
    while (pages_.next_copies_.size() < count) {
      SharedBuffer copy;
      if (!copy.allocate(page_bytes(), allocator)) return false;
      pages_.next_copies_.push(std::move(copy));
    }
    return allocator.shrink != nullptr || !moves_any() || pages_.spare_.allocate(page_bytes(), allocator);
  }
  void cancel() noexcept {
    pages_.next_copies_.reset();
    pages_.spare_ = SharedBuffer();
  }

  /// Requires has_room() and prepare(). What pages read back as may lie beyond what the format holds by its rounding,
  /// and is clamped.
  void run(const kernels::Table& kernels, const AttentionScratch& scratch, const Allocator& allocator) noexcept {
    if (concerns_any()) rewrite_pages(kernels, scratch);
    cancel();
    give_back(allocator);
  }

 private:
  Index page_bytes() const noexcept { return pages_.heads() * format_.panel_bytes; }
  /// Slots before those of sinks are empty.
  Index first_token(const Page& page) const noexcept { return std::max(page.first, sinks_); }
  bool concerns(Index page) const noexcept {
    const Page& p = pages_[page];
    const bool complete = page + 1 < pages_.size() || !pages_.is_open();
    return complete && first_token(p) >= tokens_.begin && p.end() <= tokens_.end &&
           format_.panel_bytes < pages_.format(page).panel_bytes;
  }
  /// Whether a page is rewritten in place, and moves then.
  bool moves_any() const noexcept {
    Index page = 0;
    while (page < pages_.size() && (pages_[page].memory.shared() || !concerns(page))) ++page;
    return page < pages_.size();
  }
  Index copies() const noexcept {
    Index count = 0;
    for (Index page = 0; page < pages_.size(); ++page) count += pages_[page].memory.shared() && concerns(page);
    return count;
  }

  void rewrite_pages(const kernels::Table& kernels, const AttentionScratch& scratch) noexcept {
    const std::int32_t number = pages_.format_number(format_.layout.format);
    pages_.set_format(number, format_);
    Index copied = 0;
    for (Index page = 0; page < pages_.size(); ++page) {
      if (!concerns(page)) continue;
      Page& p = pages_.pages_[page];
      const SharedBuffer to = p.memory.shared() ? pages_.next_copies_[copied++] : p.memory;
      for (Index head = 0; head < pages_.heads(); ++head) rewrite(kernels, page, head, to, scratch);
      p.memory = to;
      p.format = number;
    }
  }
  /// In place, panels become smaller one after another: none is written over one that is yet to be read.
  void rewrite(const kernels::Table& kernels, Index page, Index head, const SharedBuffer& to,
               const AttentionScratch& scratch) const noexcept {
    const Index dim = pages_.dim(), first = first_token(pages_[page]), count = pages_[page].end() - first;
    float* const x = scratch.page();
    const Tensor tokens{x, ScalarType::f32, count, 1, dim, dim, dim, 1};
    pages_.read(kernels, page, head, first, count, tokens, 0, scratch.kernel(), scratch.rotated_sums(0).data);
    const float limit = magnitude_limit(format_.layout.format, dim);
    for (Index i = 0; i < count * dim; ++i) x[i] = std::min(std::max(x[i], -limit), limit);
    unsigned char* const panel = to.data() + head * format_.panel_bytes;
    std::memset(panel, 0, std::size_t(format_.panel_bytes));
    pages_.write_slots(kernels, {page, head, first - pages_[page].first, count},
                       panel_source(pages_.side(), x, ScalarType::f32, dim, 1), format_, panel, scratch.kernel());
  }

  /// Pages that became smaller move to smaller blocks, one after another, so that whole ones come free and what is
  /// moved comes to lie together; where there is no such block, the end of the old one goes back, if the allocator
  /// takes it.
  void give_back(const Allocator& allocator) const noexcept {
    for (Page& page : pages_.pages_) {
      const Index bytes = pages_.heads() * pages_.format_of(page).panel_bytes;
      if (page.memory.bytes() <= bytes || page.memory.shared()) continue;
      SharedBuffer smaller;
      if (!smaller.allocate(bytes, allocator)) {
        static_cast<void>(page.memory.shrink(bytes));
        continue;
      }
      std::memcpy(smaller.data(), page.data(), std::size_t(bytes));
      page.memory = std::move(smaller);
    }
  }

  PageTable& pages_;
  Index sinks_;
  PageFormat format_;
  TokenRange tokens_;
};

ASYMKV_NAMESPACE_END
