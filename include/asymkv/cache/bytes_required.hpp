// bytes_required.hpp: the memory that a sequence will take, before there is one: the numbers of its appends without its
// tokens. Used by the caches' bytes_required.
#pragma once

#include "asymkv/cache/page_table.hpp"
#include "asymkv/cache/sealing.hpp"

ASYMKV_NAMESPACE_BEGIN

/// How a sequence grows: a prompt in chunks, the last of which may be shorter, then token by token; each step is
/// appended to all layers in turn.
struct Growth {
  Index prompt = 0;                   ///< tokens, 0..2^32
  Index chunk = 512;                  ///< tokens of the prompt's steps, 1..2^32
  Index decoded = 0;                  ///< tokens, 0..2^32
  ScalarType type = ScalarType::f32;  ///< of keys and values that are appended
};

namespace detail {

inline Status check_growth(const Growth& growth) noexcept {
  constexpr Index most = Index(1) << 32;
  if (growth.prompt < 0 || growth.prompt > most || growth.decoded < 0 || growth.decoded > most - growth.prompt)
    return Status::error(ErrorCode::invalid_argument, "growth: prompt %lld, decoded %lld; use 0 or more, 2^32 in all",
                         number(growth.prompt), number(growth.decoded));
  if (growth.chunk < 1 || growth.chunk > most)
    return Status::error(ErrorCode::invalid_argument, "growth: chunk is %lld; use 1..2^32", number(growth.chunk));
  return {};
}

/// Bytes that an allocator has handed out, now and at most; beyond the limit it counts no further.
class ByteMeter {
 public:
  static constexpr Index limit = Index(1) << 62;

  void take(Index bytes) noexcept {
    if (most_ > limit) return;
    now_ += bytes;  // each less than 2^62, as shapes and options are bounded
    most_ = std::max(most_, now_);
  }
  void give(Index bytes) noexcept { now_ -= most_ > limit ? 0 : bytes; }
  Index most() const noexcept { return most_; }

 private:
  Index now_ = 0, most_ = 0;
};

/// What SideStore asks for, in the same order.
class SideGrowth {
 public:
  SideGrowth(const SideConfig& config, ScalarType input) noexcept
      : config_(config),
        row_bytes_(config.heads * padded_dim(config.dim) * scalar_bytes(packed() ? input : config.type)),
        page_bytes_(packed() ? SharedBuffer::header_bytes +
                                   config.heads * page_layout(config.format, config.side, config.dim).bytes()
                             : 0) {}

  void prepare(Index tokens, ByteMeter& meter) noexcept {
    const Sealing rule(config_);
    const Index due = rule.due(counts_);
    const Index fresh = PageTable::fresh_pages(due, pages_ == 0 ? -rule.empty_slots(counts_) : slots_left_);
    const Index room = PageTable::room_for(pages_ + fresh, table_);
    if (room > table_) {
      meter.take(room * Index(sizeof(Page)));
      meter.give(table_ * Index(sizeof(Page)));
      table_ = room;
    }
    meter.take(fresh * page_bytes_);
    pages_ += fresh;
    slots_left_ = (pages_ == fresh ? -rule.empty_slots(counts_) : slots_left_) + fresh * page_tokens - due;
    next_window_ = window_;
    if (tokens == 0) return;
    if (counts_.length() == 0) meter.take(config_.sink_length * row_bytes_);
    next_window_ = rule.window_capacity(window_, counts_, tokens);
    if (next_window_ != window_) meter.take(next_window_ * row_bytes_);
  }
  /// After prepare() with as many tokens, of all sides that are prepared together.
  void append(Index tokens, ByteMeter& meter) noexcept {
    const Sealing rule(config_);
    const Index due = rule.due(counts_);
    counts_.sealed += due;
    counts_.window -= due;
    if (next_window_ != window_) meter.give(window_ * row_bytes_);
    window_ = next_window_;
    const Index sinks = rule.new_sinks(counts_, tokens);
    counts_.sinks += sinks;
    counts_.sealed += sinks;
    counts_.window += tokens - sinks;
  }

 private:
  bool packed() const noexcept { return config_.format.packed(); }

  SideConfig config_;
  Index row_bytes_, page_bytes_;
  SideCounts counts_;
  Index pages_ = 0, slots_left_ = 0, table_ = 0;
  Index window_ = 0, next_window_ = 0;
};

/// One layer's keys and values.
struct LayerGrowth {
  SideGrowth keys, values;

  void append(Index tokens, ByteMeter& meter) noexcept {
    keys.prepare(tokens, meter);
    values.prepare(tokens, meter);
    keys.append(tokens, meter);
    values.append(tokens, meter);
  }
};

/// All steps, then seal().
inline void grow(Array<LayerGrowth>& layers, const Growth& growth, ByteMeter& meter) noexcept {
  const Index end = growth.prompt + growth.decoded;
  for (Index length = 0, step = 0; length < end; length += step) {
    step = length < growth.prompt ? std::min(growth.chunk, growth.prompt - length) : 1;
    for (LayerGrowth& layer : layers) layer.append(step, meter);
  }
  for (LayerGrowth& layer : layers) layer.keys.prepare(0, meter), layer.values.prepare(0, meter);
}

}  // namespace detail
ASYMKV_NAMESPACE_END
