// oracle.hpp: what the library must compute, in double and from the formulas alone; shares no code with the library.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace oracle {

/// Nearest binary16 number, ties to even; infinity above 65519.
inline double half(double x) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);  // |x| in [2^(e-1), 2^e)
  const int step = exponent - 11 < -24 ? -24 : exponent - 11;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
  return std::fabs(rounded) > 65504.0 ? std::copysign(INFINITY, x) : rounded;
}

struct Group {
  double scale = 0.0, minimum = 0.0;
  std::vector<int> codes;
};

/// The chain of fp16 operations of the min-max quantizer.
inline Group quantize(const std::vector<double>& input, int bits) {
  std::vector<double> x;
  for (double v : input) x.push_back(half(v));
  double least = x[0], greatest = x[0];
  for (double v : x) {
    least = std::fmin(least, v);
    greatest = std::fmax(greatest, v);
  }
  const double levels = std::pow(2.0, bits) - 1.0;
  Group group;
  group.minimum = least;
  group.scale = half(half(greatest - least) / levels);
  for (double v : x) {
    const double t = half(v - least);
    const double r = group.scale == 0.0 ? (t > 0.0 ? levels : 0.0) : half(t / group.scale);
    group.codes.push_back(int(std::nearbyint(std::fmin(std::fmax(r, 0.0), levels))));
  }
  return group;
}

/// [rows x columns] of doubles.
struct Matrix {
  int rows = 0, columns = 0;
  std::vector<double> data;
  Matrix(int r, int c) : rows(r), columns(c), data(std::size_t(r) * std::size_t(c)) {}
  double& operator()(int r, int c) { return data[std::size_t(r) * std::size_t(columns) + std::size_t(c)]; }
  double operator()(int r, int c) const { return data[std::size_t(r) * std::size_t(columns) + std::size_t(c)]; }
};

/// Replaces elements [first, last) of a line by what the quantizer keeps of them, groups starting at `first`.
/// line(i) gives a reference to element i.
template <class Line>
void quantize_line(Line line, int first, int last, int group, int bits) {
  for (int g = first; g < last; g += group) {
    std::vector<double> x;
    for (int i = g; i < last && i < g + group; ++i) x.push_back(line(i));
    const Group q = quantize(x, bits);
    for (int i = 0; i < int(x.size()); ++i) line(g + i) = q.codes[std::size_t(i)] * q.scale + q.minimum;
  }
}

/// Keys [tokens x channels] with the first `sealed` tokens quantized per channel; values per token.
inline void quantize_keys(Matrix& keys, int sealed, int group, int bits) {
  for (int c = 0; c < keys.columns; ++c)
    quantize_line([&](int t) -> double& { return keys(t, c); }, 0, sealed, group, bits);
}
inline void quantize_values(Matrix& values, int sealed, int group, int bits) {
  for (int t = 0; t < sealed; ++t)
    quantize_line([&](int c) -> double& { return values(t, c); }, 0, values.columns, group, bits);
}

/// softmax(scale * q.K[first, last)) V.
inline std::vector<double> attention(const std::vector<double>& query, const Matrix& keys, const Matrix& values,
                                     int first, int last, double scale) {
  std::vector<double> weights(std::size_t(last), 0.0);
  double greatest = -INFINITY, sum = 0.0;
  for (int t = first; t < last; ++t) {
    for (int c = 0; c < keys.columns; ++c) weights[std::size_t(t)] += scale * query[std::size_t(c)] * keys(t, c);
    greatest = std::fmax(greatest, weights[std::size_t(t)]);
  }
  for (int t = first; t < last; ++t) sum += weights[std::size_t(t)] = std::exp(weights[std::size_t(t)] - greatest);
  std::vector<double> out(std::size_t(values.columns), 0.0);
  for (int t = first; t < last; ++t)
    for (int c = 0; c < values.columns; ++c) out[std::size_t(c)] += weights[std::size_t(t)] / sum * values(t, c);
  return out;
}

}  // namespace oracle
