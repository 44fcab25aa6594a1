// oracle.hpp: what the library must compute, in double and from the formulas alone; shares no code with the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace oracle {

/// Nearest number of `digits` binary digits that is a multiple of 2^least, ties to even; infinity beyond `greatest`.
inline double rounded(double x, int digits, int least, double greatest) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);  // |x| in [2^(e-1), 2^e)
  const int step = exponent - digits < least ? least : exponent - digits;
  const double result = std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
  return std::fabs(result) > greatest ? std::copysign(INFINITY, x) : result;
}

using Rounding = double (*)(double);
inline double exact(double x) { return x; }
inline double half(double x) { return rounded(x, 11, -24, 65504.0); }
inline double bfloat16(double x) { return rounded(x, 8, -133, 0x1.FEp127); }

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
  std::size_t at(int r, int c) const { return std::size_t(r) * std::size_t(columns) + std::size_t(c); }
  double& operator()(int r, int c) { return data[at(r, c)]; }
  double operator()(int r, int c) const { return data[at(r, c)]; }
};

/// What a cache keeps of a matrix, and |code * scale| + |minimum| of every number (its magnitude where it is not
/// quantized): a kernel may add such terms one by one, so rounding errors are relative to them. Codes and scales are 0
/// where nothing is quantized.
struct Kept {
  Matrix numbers, magnitudes, codes, scales;
  Kept(const Matrix& x, Rounding rounding)
      : numbers(x), magnitudes(x), codes(x.rows, x.columns), scales(x.rows, x.columns) {
    for (double& number : numbers.data) number = rounding(number);
    for (std::size_t i = 0; i < numbers.data.size(); ++i) magnitudes.data[i] = std::fabs(numbers.data[i]);
  }
};

/// Replaces elements [first, last) of a line by what the quantizer keeps of them, groups starting at `first`.
/// at(i) gives the place of element i in the matrix.
template <class At>
void quantize_line(Kept& x, At at, int first, int last, int group, int bits) {
  for (int g = first; g < last; g += group) {
    std::vector<double> input;
    for (int i = g; i < last && i < g + group; ++i) input.push_back(x.numbers.data[at(i)]);
    const Group q = quantize(input, bits);
    for (int i = 0; i < int(input.size()); ++i) {
      const double above = q.codes[std::size_t(i)] * q.scale;
      x.numbers.data[at(g + i)] = above + q.minimum;
      x.magnitudes.data[at(g + i)] = std::fabs(above) + std::fabs(q.minimum);
      x.codes.data[at(g + i)] = q.codes[std::size_t(i)];
      x.scales.data[at(g + i)] = q.scale;
    }
  }
}

/// Keys [tokens x channels] with the first `sealed` tokens quantized per channel; values per token.
inline void quantize_keys(Kept& keys, int sealed, int group, int bits) {
  for (int c = 0; c < keys.numbers.columns; ++c)
    quantize_line(
        keys, [&](int t) { return keys.numbers.at(t, c); }, 0, sealed, group, bits);
}
inline void quantize_values(Kept& values, int sealed, int group, int bits) {
  for (int t = 0; t < sealed; ++t)
    quantize_line(
        values, [&](int c) { return values.numbers.at(t, c); }, 0, values.numbers.columns, group, bits);
}

/// What variants add to the formula: scores are bounded by softcap (0: not), `added` to (a number a token, or none),
/// and the sink weighs like a token whose value is 0.
struct Terms {
  double softcap = 0.0;
  std::vector<double> added;
  double sink = -INFINITY;
};

/// softmax(scale * q.K[first, last)) V, and the magnitudes that its rounding errors are relative to.
struct Attention {
  std::vector<double> output;
  double lse = -INFINITY;         ///< log of the sum of exp(score), the sink's too
  std::vector<double> magnitude;  ///< sum over t of weight_t |v_t|, an element of the output each
  /// Greatest sum over c of scale |q_c| |k_tc|, and of what is added; the sink's too.
  double score_magnitude = 0.0;
  /// What rounding the left factors (queries and weights, each times the scale of its group) to a share of the greatest
  /// of them costs, for one unit of that share: greatest |q_c| s_tc, times the root of the sum of squared codes. Worst
  /// score, and each element of the output.
  double score_rounding = 0.0;
  std::vector<double> rounding;
};

inline Attention attention(const std::vector<double>& query, const Kept& keys, const Kept& values, int first, int last,
                           double scale, const Terms& terms = {}) {
  Attention result;
  const int channels = values.numbers.columns;
  std::vector<double> weights(std::size_t(std::max(first, last)), 0.0), factors(std::size_t(channels), 0.0);
  for (std::vector<double>* sums : {&result.output, &result.magnitude, &result.rounding})
    sums->assign(std::size_t(channels), 0.0);
  double greatest = terms.sink, sum = 0.0;
  if (std::isfinite(terms.sink)) result.score_magnitude = std::fabs(terms.sink);
  for (int t = first; t < last; ++t) {
    double score = 0.0, magnitude = 0.0, greatest_factor = 0.0, squares = 0.0;
    for (int c = 0; c < keys.numbers.columns; ++c) {
      score += scale * query[std::size_t(c)] * keys.numbers(t, c);
      magnitude += scale * std::fabs(query[std::size_t(c)]) * keys.magnitudes(t, c);
      greatest_factor = std::fmax(greatest_factor, scale * std::fabs(query[std::size_t(c)]) * keys.scales(t, c));
      squares += keys.codes(t, c) * keys.codes(t, c);
    }
    if (terms.softcap != 0.0) score = terms.softcap * std::tanh(score / terms.softcap);
    if (!terms.added.empty()) {
      score += terms.added[std::size_t(t)];
      magnitude += std::isfinite(terms.added[std::size_t(t)]) ? std::fabs(terms.added[std::size_t(t)]) : 0.0;
    }
    result.score_rounding = std::fmax(result.score_rounding, greatest_factor * std::sqrt(squares));
    weights[std::size_t(t)] = score;
    greatest = std::fmax(greatest, score);
    result.score_magnitude = std::fmax(result.score_magnitude, magnitude);
  }
  if (greatest == -INFINITY) return result;
  for (int t = first; t < last; ++t) sum += weights[std::size_t(t)] = std::exp(weights[std::size_t(t)] - greatest);
  sum += std::exp(terms.sink - greatest);
  result.lse = greatest + std::log(sum);
  for (int t = first; t < last; ++t)
    for (int c = 0; c < channels; ++c) {
      const double weight = weights[std::size_t(t)] / sum;
      result.output[std::size_t(c)] += weight * values.numbers(t, c);
      result.magnitude[std::size_t(c)] += weight * values.magnitudes(t, c);
      factors[std::size_t(c)] = std::fmax(factors[std::size_t(c)], weight * values.scales(t, c));
      result.rounding[std::size_t(c)] += values.codes(t, c) * values.codes(t, c);
    }
  for (std::size_t c = 0; c < factors.size(); ++c) result.rounding[c] = factors[c] * std::sqrt(result.rounding[c]);
  return result;
}

}  // namespace oracle
