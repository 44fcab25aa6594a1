// save.hpp: writes the tokens of a cache as saved state (state_format.hpp), in one pass and without memory of its own.
// Used by SequenceCache.
#pragma once

#include "asymkv/state/state_format.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Bytes to a sink, which is not called again once it failed.
class StateWriter {
 public:
  explicit StateWriter(const ByteSink& sink) noexcept : sink_(sink) {}

  /// Written so far.
  Index bytes() const noexcept { return bytes_; }
  bool failed() const noexcept { return failed_; }

  void write(const void* data, Index bytes) noexcept {
    if (bytes == 0 || failed_) return;
    failed_ = !sink_.write(sink_.context, data, bytes);
    if (!failed_) bytes_ += bytes;
  }
  void fill_up() noexcept {
    const unsigned char zeros[state_alignment] = {};
    write(zeros, state_padding(bytes_));
  }
  template <Index size>
  void write(const StateRecord<size>& record) noexcept {
    write(record.bytes, size);
  }

 private:
  ByteSink sink_;
  Index bytes_ = 0;
  bool failed_ = false;
};

/// Of some tokens in full precision, filled up.
inline Index state_rows_bytes(const TokenBuffer& rows) noexcept {
  return round_up(rows.heads() * rows.head_bytes(), state_alignment);
}
/// The CRC of what came before and of these.
inline std::uint32_t state_rows_crc(const TokenBuffer& rows, std::uint32_t crc) noexcept {
  for (Index head = 0; head < rows.heads(); ++head) crc = crc32c(rows.head(head), rows.head_bytes(), crc);
  const unsigned char zeros[state_alignment] = {};
  return crc32c(zeros, state_padding(rows.heads() * rows.head_bytes()), crc);
}
inline void save_rows(StateWriter& writer, const TokenBuffer& rows) noexcept {
  for (Index head = 0; head < rows.heads(); ++head) writer.write(rows.head(head), rows.head_bytes());
  writer.fill_up();
}

/// Of the panels alone: a page that was requantized in place may have more memory.
inline Index state_panel_bytes(const PageTable& pages, Index page) noexcept {
  return pages.heads() * pages.format(page).panel_bytes;
}

inline Index state_bytes(const SideStore& side) noexcept {
  Index bytes = state_rows_bytes(side.sinks()) + state_rows_bytes(side.dense());
  for (Index page = 0; page < side.pages().size(); ++page)
    bytes += StatePage::size + state_panel_bytes(side.pages(), page);
  return bytes;
}
/// Of the formats of so many layers.
constexpr Index state_formats_bytes(Index layers) noexcept {
  return round_up(2 * state_format_bytes * layers + 4, state_alignment);
}

/// Formats of all sides in order, then their CRC.
class FormatsWriter {
 public:
  explicit FormatsWriter(StateWriter& writer) noexcept : writer_(writer) {}
  void write(const SideConfig& config) noexcept {
    unsigned char bytes[state_format_bytes];
    encode(state_format(config), bytes);
    crc_ = crc32c(bytes, state_format_bytes, crc_);
    writer_.write(bytes, state_format_bytes);
  }
  void finish() noexcept {
    StateRecord<4> stored;
    stored.put(0, crc_);
    writer_.write(stored);
    writer_.fill_up();
  }

 private:
  StateWriter& writer_;
  std::uint32_t crc_ = 0;
};

inline void save_page(StateWriter& writer, const PageTable& pages, Index page) noexcept {
  StatePage record;
  record.first = pages[page].first;
  record.count = pages[page].count;
  record.format.format = pages.format(page).layout.format;
  record.bytes = state_panel_bytes(pages, page);
  record.panels_crc = crc32c(pages[page].data(), record.bytes);
  writer.write(record.encode());
  writer.write(pages[page].data(), record.bytes);
}

/// A layer with the tokens before `removed`, behind the sinks, removed.
inline void save_layer(StateWriter& writer, Index removed, const SideStore& keys, const SideStore& values) noexcept {
  const SideStore* const sides[2] = {&keys, &values};
  StateLayer record;
  record.removed = removed;
  for (Index i = 0; i < 2; ++i) {
    record.sides[i] = sides[i]->extent();
    record.rows_crc[i] = state_rows_crc(sides[i]->dense(), state_rows_crc(sides[i]->sinks(), 0));
  }
  writer.write(record.encode());
  for (const SideStore* side : sides) {
    save_rows(writer, side->sinks());
    save_rows(writer, side->dense());
    for (Index page = 0; page < side->pages().size(); ++page) save_page(writer, side->pages(), page);
  }
}

}  // namespace detail
ASYMKV_NAMESPACE_END
