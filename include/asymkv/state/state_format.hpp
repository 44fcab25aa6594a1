// state_format.hpp: the records of saved state, and how they lie in its bytes: little-endian, each part at a multiple
// of 64 bytes from the beginning, nothing that depends on an address. Used by save.hpp and load.hpp.
//
//   header   128  what the state is of: version, shape, options, types, all bytes, length
//   formats       of each layer's keys and values, 8 bytes each | CRC
//   of each layer:
//   layer    128  removed tokens; of keys and of values how many tokens and pages, and the CRC of the rows
//   of each side of it:
//   rows          sinks [kv_heads][tokens][padded dim], then the window in the same way, with the tokens kept for trim
//   of each page:
//   page      64  its tokens, format, bytes, and the CRC of the panels
//   panels        [kv_heads], as panel.hpp has them
//
// Each part is filled up with zeros to a multiple of 64 bytes. Each record ends with the CRC of its own bytes, so that
// no number is believed before it is checked, and stands right before the data that it counts: state is written and
// read in one pass, without a table. What a record has beyond its fields is zero. Another layout of these records, of
// panels or of codes is another version.
#pragma once

#include "asymkv/cache/side_store.hpp"
#include "asymkv/state/byte_stream.hpp"
#include "asymkv/state/crc32c.hpp"

ASYMKV_NAMESPACE_BEGIN

/// Format version that this library writes, and the newest that it reads.
constexpr Index state_version = 1;

namespace detail {

constexpr Index state_alignment = 64;
/// Most tokens of a layer, and of anything that counts tokens.
constexpr Index most_tokens = Index(1) << 32;

/// Bytes that fill a part of `bytes` up.
constexpr Index state_padding(Index bytes) noexcept { return round_up(bytes, state_alignment) - bytes; }

/// A record's bytes; the last four are the CRC of the others.
template <Index size>
struct StateRecord {
  unsigned char bytes[size] = {};

  template <class T>
  void put(Index at, T value) noexcept {
    for (Index i = 0; i < Index(sizeof(T)); ++i) bytes[at + i] = static_cast<unsigned char>(value >> 8 * i & 0xffu);
  }
  template <class T>
  T get(Index at) const noexcept {
    T value = 0;
    for (Index i = 0; i < Index(sizeof(T)); ++i) value = static_cast<T>(value | T(bytes[at + i]) << 8 * i);
    return value;
  }
  void put_count(Index at, Index count) noexcept { put(at, static_cast<std::uint64_t>(count)); }
  /// Less than 0 where it is beyond 2^63.
  Index get_count(Index at) const noexcept { return static_cast<Index>(get<std::uint64_t>(at)); }

  void close() noexcept { put(size - 4, crc32c(bytes, size - 4)); }
  bool closed() const noexcept { return get<std::uint32_t>(size - 4) == crc32c(bytes, size - 4); }
  friend bool operator==(const StateRecord& a, const StateRecord& b) noexcept {
    return std::memcmp(a.bytes, b.bytes, std::size_t(size)) == 0;
  }
};

/// How a side is stored: `type` is that of sides that are not packed.
struct StateFormat {
  Format format;
  ScalarType type = ScalarType::f32;
  friend bool operator==(const StateFormat& a, const StateFormat& b) noexcept {
    return a.format == b.format && (a.format.packed() || a.type == b.type);
  }
};
constexpr Index state_format_bytes = 8;
inline StateFormat state_format(const SideConfig& config) noexcept { return {config.format, config.type}; }

/// bits, group size, fit, metadata, zero point, rotation, mixed halves, type; 0 where a format does not use it.
inline void encode(const StateFormat& from, unsigned char* to) noexcept {
  const Format& f = from.format;
  const int packed[state_format_bytes] = {
      f.bits, f.group_size, int(f.fit), int(f.metadata), int(f.zero_point), int(f.rotation), f.mixed_halves, 0};
  const int plain[state_format_bytes] = {f.bits, 0, 0, 0, 0, 0, 0, int(from.type)};
  for (Index i = 0; i < state_format_bytes; ++i) to[i] = static_cast<unsigned char>(f.packed() ? packed[i] : plain[i]);
}
/// False where they are no format of this side.
[[nodiscard]] inline bool decode(const unsigned char* from, Side side, StateFormat& to) noexcept {
  if (from[2] > 1 || from[3] > 1 || from[4] > 1 || from[5] > 1 || from[7] > 2) return false;
  to.format = {from[0], from[1], Fit(from[2]), Metadata(from[3]), ZeroPoint(from[4]), Rotation(from[5]), from[6]};
  to.type = ScalarType(from[7]);
  if (!check(to.format, side).ok()) return false;
  if (!to.format.packed() && scalar_bytes(to.type) * 8 != to.format.bits) return false;
  unsigned char again[state_format_bytes];
  encode(to, again);
  return std::memcmp(again, from, std::size_t(state_format_bytes)) == 0;
}

struct StateHeader {
  static constexpr Index size = 128;
  using Record = StateRecord<size>;
  static constexpr unsigned char magic[8] = {0x89, 'a', 's', 'y', 'm', 'k', 'v', '\n'};

  Index version = state_version;
  CacheShape shape;
  Index sink_length = 0, residual_length = 0, rollback_tokens = 0;
  Index bytes = 0;   ///< of the whole state
  Index length = 0;  ///< of the shortest layer
  bool typed = false;
  ScalarType key_type = ScalarType::f32, value_type = ScalarType::f32;  ///< of input; f32 where nothing came yet

  Record encode() const noexcept {
    Record record;
    std::memcpy(record.bytes, magic, sizeof magic);
    record.put(8, static_cast<std::uint32_t>(version));
    const Index sizes[] = {shape.layers, shape.kv_heads, shape.key_dim, shape.value_dim, sink_length};
    for (Index i = 0; i < 5; ++i) record.put(12 + 4 * i, static_cast<std::uint32_t>(sizes[i]));
    const Index counts[] = {residual_length, rollback_tokens, bytes, length};
    for (Index i = 0; i < 4; ++i) record.put_count(32 + 8 * i, counts[i]);
    record.bytes[64] = typed;
    record.bytes[65] = static_cast<unsigned char>(key_type);
    record.bytes[66] = static_cast<unsigned char>(value_type);
    record.close();
    return record;
  }
  static StateHeader decode(const Record& record) noexcept {
    StateHeader header;
    header.version = record.get<std::uint32_t>(8);
    Index* const sizes[] = {&header.shape.layers, &header.shape.kv_heads, &header.shape.key_dim,
                            &header.shape.value_dim, &header.sink_length};
    for (Index i = 0; i < 5; ++i) *sizes[i] = record.get<std::uint32_t>(12 + 4 * i);
    Index* const counts[] = {&header.residual_length, &header.rollback_tokens, &header.bytes, &header.length};
    for (Index i = 0; i < 4; ++i) *counts[i] = record.get_count(32 + 8 * i);
    header.typed = record.bytes[64] != 0;
    header.key_type = ScalarType(record.bytes[65]);
    header.value_type = ScalarType(record.bytes[66]);
    return header;
  }
  /// Whether a cache can be so. `bytes` is checked where they end.
  bool plausible() const noexcept {
    const auto tokens = [](Index count) { return count >= 0 && count <= most_tokens; };
    const bool types = key_type <= ScalarType::bf16 && value_type <= ScalarType::bf16 &&
                       (typed || (key_type == ScalarType::f32 && value_type == ScalarType::f32));
    return tokens(sink_length) && tokens(residual_length) && residual_length > 0 && tokens(rollback_tokens) &&
           tokens(length) && types;
  }
};

/// Sides in the order of Side.
struct StateLayer {
  static constexpr Index size = 128;
  using Record = StateRecord<size>;

  Index removed = 0;  ///< end of the removed tokens
  SideExtent sides[2];
  std::uint32_t rows_crc[2] = {};

  Record encode() const noexcept {
    Record record;
    record.put_count(0, removed);
    for (Index i = 0; i < 2; ++i) {
      const SideExtent& side = sides[i];
      const Index at = 8 + 40 * i, counts[] = {side.sealed, side.dense, side.kept, side.pages};
      for (Index k = 0; k < 4; ++k) record.put_count(at + 8 * k, counts[k]);
      record.put(at + 32, float_bits(side.greatest));
      record.put(at + 36, rows_crc[i]);
    }
    record.close();
    return record;
  }
  static StateLayer decode(const Record& record) noexcept {
    StateLayer layer;
    layer.removed = record.get_count(0);
    for (Index i = 0; i < 2; ++i) {
      SideExtent& side = layer.sides[i];
      const Index at = 8 + 40 * i;
      Index* const counts[] = {&side.sealed, &side.dense, &side.kept, &side.pages};
      for (Index k = 0; k < 4; ++k) *counts[k] = record.get_count(at + 8 * k);
      side.greatest = bits_float(record.get<std::uint32_t>(at + 32));
      layer.rows_crc[i] = record.get<std::uint32_t>(at + 36);
    }
    return layer;
  }
};

struct StatePage {
  static constexpr Index size = 64;
  using Record = StateRecord<size>;

  Index first = 0, count = 0;
  StateFormat format;
  Index bytes = 0;  ///< of the panels
  std::uint32_t panels_crc = 0;

  Record encode() const noexcept {
    Record record;
    record.put_count(0, first);
    record.put_count(8, count);
    detail::encode(format, record.bytes + 16);
    record.put_count(24, bytes);
    record.put(32, panels_crc);
    record.close();
    return record;
  }
  /// False where the format is none.
  [[nodiscard]] static bool decode(const Record& record, Side side, StatePage& page) noexcept {
    page.first = record.get_count(0);
    page.count = record.get_count(8);
    page.bytes = record.get_count(24);
    page.panels_crc = record.get<std::uint32_t>(32);
    return detail::decode(record.bytes + 16, side, page.format);
  }
};

}  // namespace detail
ASYMKV_NAMESPACE_END
