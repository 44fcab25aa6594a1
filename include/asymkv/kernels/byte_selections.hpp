// byte_selections.hpp: which of eight bytes a set of them selects, as the byte shuffles of vector instructions want it.
// Used by the vector layers that have no compressing instruction.
#pragma once

#include "asymkv/config.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

struct ByteSelections {
  unsigned char positions[256][8];
  constexpr ByteSelections() : positions() {
    for (int set = 0; set < 256; ++set) {
      int count = 0;
      for (int i = 0; i < 8; ++i)
        if ((set >> i & 1) != 0) positions[set][count++] = static_cast<unsigned char>(i);
    }
  }
};

/// Row `set`: the positions of its bits, ascending, then zeros.
inline constexpr ByteSelections byte_selections;

}  // namespace detail
ASYMKV_NAMESPACE_END
