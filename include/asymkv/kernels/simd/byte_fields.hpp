// byte_fields.hpp: bit fields of bytes by shift and mask, for vector layers that have nothing better. Included inside
// the namespace of an instruction set by targets.hpp alone, after its vector layer; no include guard, no includes.

/// Bits [shift, shift + width) of each byte, moved to bits [to, to + width).
inline U32x16 byte_fields(U32x16 a, int shift, int width, int to) {
  const U32x16 moved = shift < to ? shift_left(a, to - shift) : shift_right(a, shift - to);
  return bit_and(moved, 0x01010101u * (((1u << width) - 1u) << to));
}
