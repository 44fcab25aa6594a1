// workspace.hpp: working memory for calls on caches, which hold none of their own data in it: caches that take turns
// share one, threads that work at the same time have one each. Used by caches and by engines with threads.
#pragma once

#include "asymkv/attention/scratch.hpp"
#include "asymkv/cache/kv_cache.hpp"
#include "asymkv/quantize/panel_writer.hpp"
#include "asymkv/shared_buffer.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Floats that any format needs of the kernels, the panels' writer and their reader, for heads of these dims.
inline Index most_kernel_floats(Index key_dim, Index value_dim) noexcept {
  Format formats[5];
  for (int i = 0; i < 3; ++i) formats[i] = {8, 32 << i};
  formats[3] = Format::rotated_values(8);
  formats[4] = Format::mixed_keys(12);
  Index most = 0;
  for (const Format& format : formats)
    for (Side side : {Side::keys, Side::values}) {
      const Index dim = side == Side::keys ? key_dim : value_dim;
      if (!check(format, side).ok() || (format.mixed() && dim > mixed_depth_limit)) continue;
      const PanelLayout layout = page_layout(format, side, dim);
      most = std::max({most, kernels::product_scratch(layout), writer_scratch(layout), reader_scratch(layout)});
    }
  return most;
}

}  // namespace detail

/// Working memory of calls on caches whose heads have given dims, whatever their policies: about 0.6 MB a thread for
/// heads of 128, the same at every length. A copy is the same memory, which goes back with the last one. One call at a
/// time may use it, but for the slices of one attend.
class Workspace {
 public:
  Workspace() noexcept = default;

  /// For caches of shape.key_dim and shape.value_dim (1..1024; the other sizes do not matter); `threads` (1..1024) may
  /// share the attention of a layer. Errors: invalid_argument, out_of_memory.
  static Result<Workspace> create(const CacheShape& shape, Index threads = 1,
                                  const Allocator& allocator = {}) noexcept {
    if (shape.key_dim < 1 || shape.key_dim > 1024 || shape.value_dim < 1 || shape.value_dim > 1024)
      return Status::error(ErrorCode::invalid_argument, "shape: key_dim %lld, value_dim %lld; both must be in 1..1024",
                           detail::number(shape.key_dim), detail::number(shape.value_dim));
    if (threads < 1 || threads > 1024)
      return Status::error(ErrorCode::invalid_argument, "threads: is %lld; use 1..1024", detail::number(threads));
    Workspace workspace;
    workspace.key_dim_ = shape.key_dim;
    workspace.value_dim_ = shape.value_dim;
    workspace.threads_ = threads;
    workspace.layout_ = layout_for(shape, threads);
    if (!workspace.memory_.allocate(threads * workspace.layout_.floats() * Index(sizeof(float)), allocator))
      return Status::error(ErrorCode::out_of_memory, "workspace: no memory for %lld threads", detail::number(threads));
    return workspace;
  }

  /// bytes() of a workspace that create() makes of such arguments.
  static Index bytes_for(const CacheShape& shape, Index threads) noexcept {
    return SharedBuffer::header_bytes + threads * layout_for(shape, threads).floats() * Index(sizeof(float));
  }

  /// 0 where it is empty.
  Index threads() const noexcept { return memory_.bytes() == 0 ? 0 : threads_; }
  /// All that the allocator handed out for it.
  Index bytes() const noexcept { return threads() == 0 ? 0 : SharedBuffer::header_bytes + memory_.bytes(); }
  bool fits(const CacheShape& shape) const noexcept {
    return threads() > 0 && key_dim_ == shape.key_dim && value_dim_ == shape.value_dim;
  }

  /// Of thread i: for the calls of caches.
  AttentionScratch scratch(Index i) const noexcept {
    return {layout_, reinterpret_cast<float*>(memory_.data()) + i * layout_.floats()};
  }

 private:
  static ScratchLayout layout_for(const CacheShape& shape, Index threads) noexcept {
    return {shape.key_dim, shape.value_dim, detail::most_kernel_floats(shape.key_dim, shape.value_dim),
            threads > 1 ? slice_partials : 0};
  }

  Index key_dim_ = 0, value_dim_ = 0, threads_ = 0;
  ScratchLayout layout_;
  SharedBuffer memory_;
};

ASYMKV_NAMESPACE_END
