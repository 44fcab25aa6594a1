// load.hpp: reads saved state (state_format.hpp) into the layers of a cache that was just created, and believes
// nothing: every number is checked before it is used, so that no bytes, however made, do harm. Used by SequenceCache
// and describe.hpp.
#pragma once

#include "asymkv/cache/kv_cache.hpp"
#include "asymkv/kernels/table.hpp"
#include "asymkv/state/panel_check.hpp"
#include "asymkv/state/state_format.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Name of how a side is stored, for errors: f16, or as in the name of a policy.
struct StateFormatName : FormatName {
  StateFormatName(const StateFormat& f, Side side) noexcept : FormatName(f.format, side) {
    if (!f.format.packed()) std::snprintf(text, sizeof text, "%s", scalar_name(f.type));
  }
};

/// Bytes from a source, which is not called again once it failed.
class StateReader {
 public:
  explicit StateReader(const ByteSource& source) noexcept : source_(source) {}

  /// Read so far.
  Index bytes() const noexcept { return bytes_; }

  Status read(void* data, Index bytes) noexcept {
    if (bytes == 0) return {};
    if (source_.read == nullptr) return Status::error(ErrorCode::invalid_argument, "source: read is null");
    if (!source_.read(source_.context, data, bytes))
      return Status::error(ErrorCode::stream_failed, "source: ended early, or failed, in the %lld bytes from %lld on",
                           number(bytes), number(bytes_));
    bytes_ += bytes;
    return {};
  }
  /// What fills the last part up, which is zeros; crc goes on over it.
  Status read_padding(const char* what, std::uint32_t* crc) noexcept {
    unsigned char padding[state_alignment] = {};
    const Index count = state_padding(bytes_);
    if (Status status = read(padding, count); !status.ok()) return status;
    if (crc != nullptr) *crc = crc32c(padding, count, *crc);
    const unsigned char zeros[state_alignment] = {};
    if (std::memcmp(padding, zeros, std::size_t(count)) == 0) return {};
    return Status::error(ErrorCode::corrupt_state, "state: %s are not followed by zeros; it is damaged", what);
  }

 private:
  ByteSource source_;
  Index bytes_ = 0;
};

/// Reads the header. Errors: stream_failed, corrupt_state, unsupported (a newer version).
inline Status load_header(StateReader& reader, StateHeader& header) noexcept {
  StateHeader::Record record;
  if (Status status = reader.read(record.bytes, StateHeader::size); !status.ok()) return status;
  header = StateHeader::decode(record);
  if (std::memcmp(record.bytes, StateHeader::magic, sizeof StateHeader::magic) != 0)
    return Status::error(ErrorCode::corrupt_state,
                         "state: its first 8 bytes are not those of saved state; is the source at its beginning?");
  if (header.version > state_version)
    return Status::error(ErrorCode::unsupported,
                         "state: is of format version %lld, this library reads up to %lld; use a newer one",
                         number(header.version), number(state_version));
  if (!record.closed())
    return Status::error(ErrorCode::corrupt_state, "state: its header does not match its checksum; it is damaged");
  if (header.version == state_version && header.plausible() && check_shape(header.shape).ok() &&
      header.encode() == record)
    return {};
  return Status::error(ErrorCode::corrupt_state, "state: its header says what no cache can be");
}

/// Whether a cache is like the one that was saved, as far as the headers say. `formats` is the argument of load() that
/// decides on formats.
inline Status check_same(const StateHeader& own, const StateHeader& state, const char* formats) noexcept {
  const CacheShape &a = own.shape, &b = state.shape;
  if (a.layers != b.layers || a.kv_heads != b.kv_heads || a.key_dim != b.key_dim || a.value_dim != b.value_dim)
    return Status::error(ErrorCode::invalid_argument,
                         "shape: is {%lld, %lld, %lld, %lld}, but the state's is {%lld, %lld, %lld, %lld}",
                         number(a.layers), number(a.kv_heads), number(a.key_dim), number(a.value_dim), number(b.layers),
                         number(b.kv_heads), number(b.key_dim), number(b.value_dim));
  if (own.sink_length != state.sink_length)
    return Status::error(ErrorCode::invalid_argument, "%s: has %lld sinks, but the state's has %lld", formats,
                         number(own.sink_length), number(state.sink_length));
  if (own.residual_length != state.residual_length)
    return Status::error(ErrorCode::invalid_argument, "options: residual_length is %lld, but the state's is %lld",
                         number(own.residual_length), number(state.residual_length));
  if (own.rollback_tokens != state.rollback_tokens)
    return Status::error(ErrorCode::invalid_argument, "options: rollback_tokens is %lld, but the state's is %lld",
                         number(own.rollback_tokens), number(state.rollback_tokens));
  return {};
}
/// The same of a side's format.
inline Status check_same(const StateFormat& own, const StateFormat& state, Side side, Index layer,
                         const char* formats) noexcept {
  if (own == state) return {};
  return Status::error(ErrorCode::invalid_argument, "%s: stores %s of layer %lld as %s, but the state's as %s", formats,
                       side_name(side), number(layer), StateFormatName(own, side).text,
                       StateFormatName(state, side).text);
}

/// Reads the formats and calls function(layer, side, format) with each, in order, before their CRC has been checked.
template <class Function>
Status load_formats(StateReader& reader, Index layers, Function function) {
  const Status fault = Status::error(ErrorCode::corrupt_state, "state: its formats are damaged");
  std::uint32_t crc = 0;
  for (Index layer = 0; layer < layers; ++layer)
    for (Side side : {Side::keys, Side::values}) {
      unsigned char bytes[state_format_bytes];
      StateFormat format;
      if (Status status = reader.read(bytes, state_format_bytes); !status.ok()) return status;
      crc = crc32c(bytes, state_format_bytes, crc);
      if (!decode(bytes, side, format)) return fault;
      function(layer, side, format);
    }
  StateRecord<4> stored;
  if (Status status = reader.read(stored.bytes, 4); !status.ok()) return status;
  if (stored.get<std::uint32_t>(0) != crc) return fault;
  return reader.read_padding("formats", nullptr);
}

/// Reads the layers, one after the other.
class LayerLoader {
 public:
  LayerLoader(StateReader& reader, const StateHeader& header, const kernels::Table& kernels,
              const Allocator& allocator) noexcept
      : reader_(reader), header_(header), kernels_(kernels), allocator_(allocator) {}

  /// Of a layer without tokens, whose sides are as the header and the formats say.
  Status load(Index layer, Index& removed, SideStore& keys, SideStore& values) noexcept {
    layer_ = layer;
    StateLayer::Record record;
    if (Status status = reader_.read(record.bytes, StateLayer::size); !status.ok()) return status;
    if (!record.closed()) return corrupt("the record", "does not match its checksum");
    const StateLayer from = StateLayer::decode(record);
    if (!(from.encode() == record) || !plausible(from, keys, values))
      return corrupt("the record", "has numbers that no cache has");
    removed = from.removed;
    for (SideStore* side : {&keys, &values}) {
      const int i = int(side->config().side);
      if (Status status = load_side(*side, from.sides[i], from.rows_crc[i], removed); !status.ok()) return status;
    }
    return {};
  }

 private:
  Status corrupt(const char* part, const char* fault) const noexcept {
    return Status::error(ErrorCode::corrupt_state, "state: %s of layer %lld, which ends at byte %lld, %s", part,
                         number(layer_), number(reader_.bytes()), fault);
  }
  Status no_memory(const SideStore& side) const noexcept {
    return Status::error(ErrorCode::out_of_memory, "load: no memory for the %s of layer %lld",
                         side_name(side.config().side), number(layer_));
  }

  bool plausible(const StateLayer& from, const SideStore& keys, const SideStore& values) const noexcept {
    for (const SideExtent& side : from.sides)
      for (Index count : {side.sealed, side.dense, side.kept, side.pages})
        if (count < 0 || count > most_tokens) return false;
    const Index length = from.sides[0].length();
    return length == from.sides[1].length() && length <= most_tokens && (header_.typed || length == 0) &&
           from.removed >= 0 && from.removed <= length && (from.removed == 0 || from.removed > header_.sink_length) &&
           keys.can_hold(from.sides[0], from.removed) && values.can_hold(from.sides[1], from.removed);
  }

  Status load_side(SideStore& side, const SideExtent& extent, std::uint32_t rows_crc, Index removed) noexcept {
    TokenBuffer sinks, dense;
    const Index sink_count = std::min(header_.sink_length, extent.length());
    std::uint32_t crc = 0;
    if (Status status = load_rows(side, extent.greatest, 0, sink_count, sinks, crc); !status.ok()) return status;
    if (Status status = load_rows(side, extent.greatest, extent.kept, extent.dense, dense, crc); !status.ok())
      return status;
    if (crc != rows_crc) return corrupt(side_name(side.config().side), "do not match their checksum");
    for (Index page = 0; page < extent.pages; ++page)
      if (Status status = load_page(side, std::max(sink_count, removed), extent.greatest); !status.ok()) return status;
    if (extent.pages > 0 && (side.pages()[0].end() <= sink_count || last(side).end() != extent.sealed))
      return corrupt("the pages", "are not those that its record counts");
    side.restore(extent, std::move(sinks), std::move(dense));
    return {};
  }

  /// Their CRC is yet to be compared. No memory is written to before there are bytes for it.
  Status load_rows(const SideStore& side, float greatest, Index kept, Index count, TokenBuffer& rows,
                   std::uint32_t& crc) noexcept {
    const SideConfig& config = side.config();
    const ScalarType input = config.side == Side::keys ? header_.key_type : header_.value_type;
    const ScalarType type = side.packed() ? input : config.type;
    rows.configure(type, config.heads, config.dim);
    const Index bytes = rows.bytes_for(kept + count);
    Buffer memory;
    if (!memory.allocate_unset(bytes, allocator_)) return no_memory(side);
    if (Status status = reader_.read(memory.data(), bytes); !status.ok()) return status;
    crc = crc32c(memory.data(), bytes, crc);
    if (Status status = reader_.read_padding("tokens", &crc); !status.ok()) return status;
    if (bytes > 0 && !(greatest_in(memory, type) <= rounded(greatest, type)))
      return corrupt(side_name(config.side), "have elements greater than it says, or NaN");
    rows.restore(std::move(memory), kept, count);
    return {};
  }
  float greatest_in(const Buffer& memory, ScalarType type) const noexcept {
    const std::uint32_t bits = kernels_.greatest_magnitude(memory.data(), type, memory.bytes() / scalar_bytes(type));
    if (type == ScalarType::f32) return bits_float(bits);
    const std::uint16_t half = static_cast<std::uint16_t>(bits);
    return load_scalar(&half, type, 0);
  }
  /// What the greatest magnitude became when it was stored.
  static float rounded(float greatest, ScalarType type) noexcept {
    float stored;
    store_scalar(&stored, type, 0, greatest);
    return load_scalar(&stored, type, 0);
  }

  static const Page& last(const SideStore& side) noexcept { return side.pages()[side.pages().size() - 1]; }

  /// The first page begins with the first token that is to be found in pages, or before it.
  Status load_page(SideStore& side, Index most_first, float greatest) noexcept {
    const Side which = side.config().side;
    StatePage::Record record;
    StatePage page;
    if (Status status = reader_.read(record.bytes, StatePage::size); !status.ok()) return status;
    if (!record.closed()) return corrupt("the record of a page", "does not match its checksum");
    const bool first = side.pages().size() == 0;
    if (!StatePage::decode(record, which, page) || !(page.encode() == record) || !page.format.format.packed() ||
        page.first < 0 || (first ? page.first > most_first : page.first != last(side).end()) || page.count < 1 ||
        page.count > page_tokens)
      return corrupt("the record of a page", "has numbers that no page has");
    const Format& format = page.format.format;
    if ((format.mixed() && side.dim() > mixed_depth_limit) || !side.pages().has_room(format))
      return corrupt("the record of a page", "has a format that it cannot have");
    const PageFormat page_format(page_layout(format, which, side.dim()));
    if (page.bytes != side.config().heads * page_format.panel_bytes)
      return corrupt("the record of a page", "has another number of bytes than its format");
    if (!side.pages().restore_page(page.first, page.count, page_format, allocator_)) return no_memory(side);
    unsigned char* const data = last(side).data();
    if (Status status = reader_.read(data, page.bytes); !status.ok()) return status;
    if (crc32c(data, page.bytes) != page.panels_crc) return corrupt("a page", "does not match its checksum");
    for (Index head = 0; head < side.config().heads; ++head)
      if (!is_sound(page_format.layout, side.pages().panel(side.pages().size() - 1, head),
                    greatest_metadata(which, greatest)))
        return corrupt("a page", "has scales, zero points or widths that none has");
    return {};
  }

  /// The attention checks queries against the greatest key, so that their products with scales stay finite. A scale is
  /// at most twice that, a zero point less, but for the least that metadata can tell apart; values are multiplied with
  /// weights up to 1, and may be rotated.
  static float greatest_metadata(Side side, float greatest) noexcept {
    return side == Side::keys ? 8.0f * greatest + 1e-4f : std::numeric_limits<float>::max();
  }

  StateReader& reader_;
  const StateHeader& header_;
  const kernels::Table& kernels_;
  const Allocator& allocator_;
  Index layer_ = 0;
};

}  // namespace detail
ASYMKV_NAMESPACE_END
