// block_formats.cpp: dequantization at load; speed matters little here, the file is read once.
#include "block_formats.hpp"

#include <asymkv/scalar.hpp>
#include <cstring>

namespace llm {
namespace {

std::uint16_t load16(const unsigned char* from) { return std::uint16_t(from[0] | from[1] << 8); }
float load_half(const unsigned char* from) { return asymkv::half_to_float(load16(from)); }

void nibbles(const unsigned char* from, float scale, float offset, float* to) {
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * float(from[i] & 15) + offset;
    to[i + 16] = scale * float(from[i] >> 4) + offset;
  }
}

void q8_0(const unsigned char* from, float* to) {
  const float d = load_half(from);
  for (int i = 0; i < 32; ++i) to[i] = d * float(static_cast<signed char>(from[2 + i]));
}

void q5_0(const unsigned char* from, float* to) {
  const float d = load_half(from);
  const unsigned char *high = from + 2, *low = from + 6;
  for (int i = 0; i < 32; ++i) {
    const int nibble = low[i % 16] >> (i / 16 * 4) & 15;
    const int bit = high[i / 8] >> (i % 8) & 1;
    to[i] = d * float((nibble | bit << 4) - 16);
  }
}

/// Scales and minima of the sub-blocks 0..3 are the low six bits of bytes 0..3 and 4..7. Those of 4..7 have their low
/// nibbles in bytes 8..11 and their high pairs in the two bits that the others leave.
void q4_k(const unsigned char* from, float* to) {
  const float d = load_half(from), e = load_half(from + 2);
  const unsigned char *packed = from + 4, *nibbles = from + 16;
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
    const int minimum = j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    for (int i = 0; i < 32; ++i) {
      const int q = nibbles[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
      to[32 * j + i] = d * float(scale) * float(q) - e * float(minimum);
    }
  }
}

/// A half block is four runs of 32: runs 0 and 1 are the low nibbles of its 64 bytes, 2 and 3 the high ones; the high
/// pairs of run r are bits 2r and 2r+1 of its 32 bytes.
void q6_k(const unsigned char* from, float* to) {
  const float d = load_half(from + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i % 128 / 32, lane = i % 32;
    const int nibble = from[half * 64 + run % 2 * 32 + lane] >> (run / 2 * 4) & 15;
    const int pair = from[128 + half * 32 + lane] >> (2 * run) & 3;
    const int scale = static_cast<signed char>(from[192 + i / 16]);
    to[i] = d * float(scale) * float((nibble | pair << 4) - 32);
  }
}

void dequantize_block(TensorType type, const unsigned char* from, float* to) {
  switch (type) {
    case TensorType::f32:
      std::memcpy(to, from, 4);
      break;
    case TensorType::f16:
      *to = load_half(from);
      break;
    case TensorType::bf16:
      *to = asymkv::bfloat16_to_float(load16(from));
      break;
    case TensorType::q8_0:
      q8_0(from, to);
      break;
    case TensorType::q4_0:
      nibbles(from + 2, load_half(from), -8.0f * load_half(from), to);
      break;
    case TensorType::q4_1:
      nibbles(from + 4, load_half(from), load_half(from + 2), to);
      break;
    case TensorType::q5_0:
      q5_0(from, to);
      break;
    case TensorType::q4_k:
      q4_k(from, to);
      break;
    case TensorType::q6_k:
      q6_k(from, to);
      break;
  }
}

}  // namespace

BlockSize block_size(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {1, 4};
    case TensorType::f16:
    case TensorType::bf16:
      return {1, 2};
    case TensorType::q8_0:
      return {32, 34};
    case TensorType::q4_0:
      return {32, 18};
    case TensorType::q4_1:
      return {32, 20};
    case TensorType::q5_0:
      return {32, 22};
    case TensorType::q4_k:
      return {256, 144};
    case TensorType::q6_k:
      return {256, 210};
  }
  return {0, 0};
}

const char* supported_tensor_types() { return "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q6_K"; }

void dequantize(TensorType type, const unsigned char* from, Index count, float* to) {
  const BlockSize block = block_size(type);
  for (Index i = 0; i < count; i += block.elements, from += block.bytes) dequantize_block(type, from, to + i);
}

}  // namespace llm
