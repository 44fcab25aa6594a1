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
      for (int i = 0; i < 32; ++i) to[i] = load_half(from) * float(static_cast<signed char>(from[2 + i]));
      break;
    case TensorType::q4_0:
      nibbles(from + 2, load_half(from), -8.0f * load_half(from), to);
      break;
    case TensorType::q4_1:
      nibbles(from + 4, load_half(from), load_half(from + 2), to);
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
  }
  return {0, 0};
}

const char* supported_tensor_types() { return "F32, F16, BF16, Q8_0, Q4_0, Q4_1"; }

void dequantize(TensorType type, const unsigned char* from, Index count, float* to) {
  const BlockSize block = block_size(type);
  for (Index i = 0; i < count; i += block.elements, from += block.bytes) dequantize_block(type, from, to + i);
}

}  // namespace llm
