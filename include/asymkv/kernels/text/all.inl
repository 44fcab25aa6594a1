// all.inl: the kernel text, in the order in which its parts use each other. Included once per instruction set, after
// its vector layer.

#include "asymkv/kernels/text/dequantize.inl"
#include "asymkv/kernels/text/dot.inl"
#include "asymkv/kernels/text/tile.inl"
#include "asymkv/kernels/text/product.inl"
#include "asymkv/kernels/text/dense.inl"
#include "asymkv/kernels/text/softmax.inl"
#include "asymkv/kernels/text/score_terms.inl"
#include "asymkv/kernels/text/gather.inl"
#include "asymkv/kernels/text/quantize.inl"
#include "asymkv/kernels/text/pack.inl"
#include "asymkv/kernels/text/write_rows.inl"
#include "asymkv/kernels/text/table.inl"
