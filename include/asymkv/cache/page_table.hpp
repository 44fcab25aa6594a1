// page_table.hpp: the sealed pages of one side (keys or values) of one layer: which tokens each holds, in which format,
// and whether forks share it. Used by SideStore; read by the attention.
#pragma once

#include <algorithm>

#include "asymkv/attention/parameters.hpp"
#include "asymkv/quantize/panel_writer.hpp"
#include "asymkv/shared_buffer.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Up to page_tokens sealed tokens of all kv heads: one panel a head. Codes do not change once written, but for
/// requantize.
struct Page {
  SharedBuffer memory;
  Index first = 0;          ///< token of slot 0
  std::int32_t count = 0;   ///< slots in use; those of sinks, in the first page, are empty
  std::int32_t format = 0;  ///< PageTable::format
  unsigned char* data() const noexcept { return memory.data(); }
  Index end() const noexcept { return first + count; }
};

/// How the panels of a page lie.
struct PageFormat {
  PanelLayout layout;
  Index panel_bytes = 0;  ///< layout.bytes(), which takes a while to compute

  PageFormat() noexcept = default;
  explicit PageFormat(const PanelLayout& of) noexcept : layout(of), panel_bytes(of.bytes()) {}
};

/// Pages in the order of their tokens, in full but for the last, and where the cache was trimmed.
class PageTable {
 public:
  PageTable() noexcept = default;
  /// Of a packed format.
  PageTable(const Format& format, Side side, Index heads, Index dim) noexcept
      : side_(side), heads_(heads), dim_(dim), own_format_(page_layout(format, side, dim)) {}

  Index size() const noexcept { return used_; }
  const Page& operator[](Index i) const noexcept { return pages_[i]; }
  const Page* begin() const noexcept { return pages_.begin(); }
  const Page* end() const noexcept { return pages_.begin() + used_; }

  Index heads() const noexcept { return heads_; }
  Index dim() const noexcept { return dim_; }
  Side side() const noexcept { return side_; }
  /// Of pages that are yet to come.
  const PageFormat& own_format() const noexcept { return own_format_; }
  /// The side's own, unless the page was requantized.
  const PageFormat& format(Index page) const noexcept { return format_of(pages_[page]); }
  const unsigned char* panel(Index page, Index head) const noexcept {
    return pages_[page].data() + head * format(page).panel_bytes;
  }
  /// Whether some page may hold rotated values.
  bool rotated() const noexcept {
    if (own_format_.layout.format.rotation != Rotation::none) return true;
    for (std::int32_t i = 0; i < more_; ++i)
      if (more_formats_[i].layout.format.rotation != Rotation::none) return true;
    return false;
  }

  Index page_bytes() const noexcept { return heads_ * own_format_.panel_bytes; }
  /// Of pages that are this table's alone.
  Index own_bytes() const noexcept {
    Index bytes = 0;
    for (const Page& page : *this) bytes += page.memory.shared() ? 0 : page.memory.bytes();
    return bytes;
  }
  /// Of pages that forks share too, with their headers.
  Index shared_bytes() const noexcept {
    Index bytes = 0;
    for (const Page& page : *this) bytes += page.memory.shared() ? SharedBuffer::header_bytes + page.memory.bytes() : 0;
    return bytes;
  }
  /// With the headers of pages that are this table's alone.
  Index table_bytes() const noexcept {
    Index bytes = pages_.bytes();
    for (const Page& page : *this) bytes += page.memory.shared() ? 0 : SharedBuffer::header_bytes;
    return bytes;
  }

  /// Pages that so many tokens need where so many slots are left; less than 0: to be left empty.
  static Index fresh_pages(Index tokens, Index slots_left) noexcept {
    return tokens <= std::max<Index>(0, slots_left) ? 0 : (tokens - slots_left + page_tokens - 1) / page_tokens;
  }
  /// Pages that a table has room for when it must have room for `size` and has it for `now`.
  static Index room_for(Index size, Index now) noexcept { return size <= now ? now : std::max(size, 2 * now); }

  /// Gets memory of fresh pages for `tokens` tokens, and for a copy of the open page where forks share it; `empty` as
  /// for open. False if there is none; cancel() then gives back what was got, but for the table's own room.
  [[nodiscard]] bool prepare(Index tokens, Index empty, const Allocator& allocator) noexcept {
    const bool open = tokens > 0 && is_open();
    const Index fresh = fresh_pages(tokens, used_ == 0 ? -empty : open ? slots_left() : 0);
    if (!pages_.reserve(room_for(used_ + fresh, pages_.capacity()), allocator)) return false;
    if (open && last().memory.shared() && !next_open_.allocate(page_bytes(), allocator)) return false;
    for (Index i = 0; i < fresh; ++i) {
      Page page;
      if (!page.memory.allocate(page_bytes(), allocator)) return false;
      pages_.push(std::move(page));
    }
    return true;
  }
  void cancel() noexcept {
    pages_.shrink(used_);
    next_open_ = SharedBuffer();
  }

  /// Room of the page that token `sealed` goes to, which is opened where none is; requires prepare. The first page of
  /// all leaves `empty` slots empty: those of sinks, so that its slots count from token 0 on, and pages of keys and
  /// values are aligned with each other and with those of caches without sinks.
  Index open(Index sealed, Index empty) noexcept {
    if (used_ == 0 || !is_open()) {
      Page& page = pages_[used_];
      page.count = std::int32_t(used_ == 0 ? empty : 0);
      page.first = sealed - page.count;
      ++used_;
    } else if (next_open_.bytes() > 0) {
      std::memcpy(next_open_.data(), last().data(), std::size_t(page_bytes()));
      last().memory = std::exchange(next_open_, SharedBuffer());
    }
    return page_tokens - last().count;
  }
  /// Quantizes tokens of one head into the open page, behind those that it has. `source` is the address of the first
  /// element; `scratch` has writer_scratch floats.
  void write(const kernels::Table& kernels, Index head, const kernels::PanelSource& source, Index tokens,
             float* scratch) noexcept {
    const Index page = used_ - 1;
    write_slots(kernels, {page, head, last().count, tokens}, source, own_format_,
                last().data() + head * own_format_.panel_bytes, scratch);
  }
  /// Counts what was written for all heads.
  void add(Index tokens) noexcept { last().count += std::int32_t(tokens); }

  /// Drops what pages have from token `tokens` on. A page that is cut inside a group of keys takes no more tokens.
  void cut(Index tokens) noexcept {
    while (used_ > 0 && last().first >= tokens) --used_;
    pages_.shrink(used_);
    if (used_ > 0) last().count = std::int32_t(std::min(tokens, last().end()) - last().first);
  }
  void erase_front(Index pages) noexcept {
    pages_.erase_front(pages);
    used_ -= pages;
  }
  void clear() noexcept {
    pages_.reset();
    used_ = 0;
    more_ = 0;
  }
  /// Of a format among those of the table, or of the place that it gets: most_more + 1 where there is none.
  std::int32_t format_number(const Format& format) const noexcept {
    if (format == own_format_.layout.format) return 0;
    for (std::int32_t i = 0; i < more_; ++i)
      if (more_formats_[i].layout.format == format) return i + 1;
    std::int32_t number = 1;
    while (number <= more_ && is_in_use(number)) ++number;
    return number;
  }
  /// Whether the table has the format, or a place that no page's format has.
  bool has_room(const Format& format) const noexcept { return format_number(format) <= most_more; }
  /// Adds a page of saved state, with panels of zeros, behind the others; requires has_room(). False if there is no
  /// memory.
  [[nodiscard]] bool restore_page(Index first, Index count, const PageFormat& format,
                                  const Allocator& allocator) noexcept {
    Page page;
    page.first = first;
    page.count = std::int32_t(count);
    page.format = format_number(format.layout.format);
    if (used_ == pages_.capacity() && !pages_.reserve(std::max<Index>(16, 2 * used_), allocator)) return false;
    if (!page.memory.allocate(heads_ * format.panel_bytes, allocator)) return false;
    set_format(page.format, format);
    pages_.push(std::move(page));
    ++used_;
    return true;
  }
  /// Shares all pages of another table of this side; false if there is no memory.
  [[nodiscard]] bool fork(const PageTable& from, const Allocator& allocator) noexcept {
    if (!pages_.reserve(from.used_, allocator)) return false;
    for (const Page& page : from) pages_.push(Page(page));
    used_ = from.used_;
    std::copy(from.more_formats_, from.more_formats_ + most_more, more_formats_);
    more_ = from.more_;
    return true;
  }

  /// Dequantized tokens [token, token + count) of one head of a page, from out's token `at` on. `scratch` has
  /// reader_scratch floats, `row` dim.
  void read(const kernels::Table& kernels, Index page, Index head, Index token, Index count, const Tensor& out,
            Index at, float* scratch, float* row) const noexcept {
    const Index slot = token - pages_[page].first;
    const PanelLayout& layout = format(page).layout;
    if (layout.format.rotation == Rotation::none)
      return read_panel(kernels, side_, layout, panel(page, head), slot, count, out, at, scratch);
    for (Index i = 0; i < count; ++i) {
      const Tensor rotated_row{row, ScalarType::f32, 1, 1, dim_, dim_, dim_, 1};
      read_panel(kernels, side_, layout, panel(page, head), slot + i, 1, rotated_row, 0, scratch);
      rotate_hadamard(row, dim_);
      for (Index c = 0; c < dim_; ++c)
        store_scalar(out.data, out.type, (at + i) * out.token_stride + c * out.dim_stride, row[c]);
    }
  }

 private:
  friend class Requantization;

  /// Slots [first, first + count) of a head's panel in a page.
  struct Slots {
    Index page, head, first, count;
  };
  /// Quantizes tokens into slots of a panel, which is where `panel` says.
  void write_slots(const kernels::Table& kernels, const Slots& slots, const kernels::PanelSource& source,
                   const PageFormat& format, unsigned char* panel, float* scratch) const noexcept {
    if (format.layout.format.mixed()) {
      const bool follows = slots.page > 0 && this->format(slots.page - 1).layout.format == format.layout.format;
      return write_mixed_panel(kernels, format.layout, follows ? this->panel(slots.page - 1, slots.head) : nullptr,
                               panel, source, slots.first, slots.count, scratch);
    }
    const PanelRange range = side_ == Side::keys ? PanelRange{slots.first, slots.count, 0, dim_}
                                                 : PanelRange{0, dim_, slots.first, slots.count};
    write_panel(kernels, format.layout, panel, source, range, scratch);
  }

  bool is_in_use(std::int32_t number) const noexcept {
    return std::any_of(begin(), end(), [&](const Page& page) { return page.format == number; });
  }
  /// At the place that format_number() gave it.
  void set_format(std::int32_t number, const PageFormat& format) noexcept {
    if (number > 0) more_formats_[number - 1] = format;
    more_ = std::max(more_, number);
  }
  const PageFormat& format_of(const Page& page) const noexcept {
    return page.format == 0 ? own_format_ : more_formats_[page.format - 1];
  }
  Page& last() noexcept { return pages_[used_ - 1]; }
  Index slots_left() const noexcept { return page_tokens - pages_[used_ - 1].count; }
  /// Whether the last page may take more tokens.
  bool is_open() const noexcept {
    if (used_ == 0 || pages_[used_ - 1].format != 0 || slots_left() == 0) return false;
    return side_ == Side::values || pages_[used_ - 1].count % own_format_.layout.group_size() == 0;
  }

  Side side_ = Side::keys;
  Index heads_ = 0, dim_ = 0;
  PageFormat own_format_;
  static constexpr std::int32_t most_more = 3;
  PageFormat more_formats_[most_more];  ///< of requantized pages
  std::int32_t more_ = 0;
  Array<Page> pages_;  ///< more than used_ between prepare and the last open
  Index used_ = 0;
  SharedBuffer next_open_;           ///< memory for a copy of the open page
  Array<SharedBuffer> next_copies_;  ///< memory for copies of pages that are requantized
  SharedBuffer spare_;               ///< holds a smaller page's place until they move
};

ASYMKV_NAMESPACE_END
