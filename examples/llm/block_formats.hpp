// block_formats.hpp: how GGUF stores a row of numbers: plain scalars, or blocks with a scale. Used by the loader.
//   Q8_0  f16 d,        32 x int8             x = d*q
//   Q4_0  f16 d,        16 bytes of nibbles   x = d*(q - 8)    low nibbles are elements 0..15, high ones 16..31
//   Q4_1  f16 d, f16 m, 16 bytes of nibbles   x = d*q + m
//   Q5_0  f16 d, 32 high bits, 16 bytes of nibbles   x = d*(q - 16)
// and blocks of 256 ("K"), whose sub-blocks have small integer scales s, and m, against f16 ones:
//   Q4_K  f16 d, f16 e, 8 x (6-bit s, 6-bit m), 128 bytes of nibbles     x = d*s*q - e*m      sub-blocks of 32
//   Q6_K  128 bytes of nibbles, 64 of high pairs, 16 x int8 s, f16 d     x = d*s*(q - 32)     sub-blocks of 16
#pragma once

#include <cstdint>
#include <string>

#include "gguf.hpp"

namespace llm {

/// Elements and bytes of a block; elements is 0 for a type that is not supported.
struct BlockSize {
  Index elements;
  Index bytes;
};
BlockSize block_size(TensorType type);

/// The supported types, for messages.
const char* supported_tensor_types();

/// Writes `count` elements, a multiple of the block's, as float.
void dequantize(TensorType type, const unsigned char* from, Index count, float* to);

}  // namespace llm
