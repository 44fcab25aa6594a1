// attention_trial.hpp: one attention problem given to a cache in two steps, and its output compared with the oracle's
// element by element. Used by all tests that say that attention is right.
#pragma once

#include "support/variant.hpp"

namespace support {

/// Widths of 16 and 32 are sides that are not quantized.
struct AttentionCase {
  int key_bits, value_bits, group;
  Index kv_heads, heads, key_dim, value_dim, length, queries, residual;
  Index window = 0;
  Index threads = 1;
  Variant variant = {};
};

inline std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
  return out << "k" << c.key_bits << "v" << c.value_bits << " g" << c.group << " heads " << c.heads << "/" << c.kv_heads
             << " dims " << c.key_dim << ", " << c.value_dim << " length " << c.length << " queries " << c.queries
             << " R " << c.residual << " window " << c.window << " threads " << c.threads << c.variant;
}

/// c of the bound on the error of an element of the output,
///   c * 2^-24 * (1 + max_t scale * sum_i |q_i||k_ti|) * sum_t w_t|v_t|
/// and what rounding of the rows costs, where |k| and |v| of a quantized number are |code * scale| + |zero
/// point|: decoding adds the two products apart, so a small number that is the difference of two large ones costs what
/// the large ones cost. About four times the worst error of all cases on all instruction sets.
constexpr double kErrorConstant = 16.0;

/// Few rows, of queries and of weights, are rounded to steps of 1/16256 of their greatest element before they meet the
/// codes, of 1/127 before codes of one or two bits: errors of 0.29 or 0.41 steps each add up like a random walk, of
/// which this is seven deviations. Rows go in blocks of attention_rows, so the last block may be of few.
constexpr double step_errors(int bits) { return bits <= 2 ? 3.0 / 127.0 : 2.0 / 16256.0; }
/// Many rows are so where they meet the codes in tile registers: each element is off by at most 2^-16 of itself, mostly
/// by far less, and errors add up like a random walk too.
constexpr double kTileErrors = 0x1p-15;

/// Steps that so many query rows of a kv head are rounded to before they meet codes of so many bits.
inline double row_errors(Index rows, int bits) {
  const kernels::Table& kernels = **kernels::choose_table();
  const Index few = bits == 8 ? kernels.few_rows_of_8_bits : kernels::few_rows;
  if ((rows - 1) % attention_rows < few) return step_errors(bits);
  return kernels.isa == Isa::amx ? kTileErrors : 0.0;
}
/// Bound on the error of a score, of rows with such errors.
inline double score_bound(const oracle::Attention& expected, double errors) {
  const double rounding = errors * expected.score_rounding;
  EXPECT_LT(rounding, 0.15) << "the bound is too wide to see anything: smaller queries";
  return kErrorConstant * 0x1p-24 * (1.0 + expected.score_magnitude) + 2.0 * rounding;
}

/// How an output compares with the oracle's.
struct Comparison {
  int outside = 0;     ///< elements beyond the bound, or not a number
  double worst = 0.0;  ///< greatest error over its bound
};

/// A float matrix of which T holds every element.
template <class T>
RowMatrix representable(const RowMatrix& x) {
  return x.cast<T>().template cast<float>();
}

inline Result<AsymKVCache> cache_of(const AttentionCase& c) {
  Format keys, values;
  keys.bits = c.key_bits;
  values.bits = c.value_bits;
  keys.group_size = values.group_size = c.group;
  CacheOptions options;
  options.residual_length = c.residual;
  options.threads = c.threads;
  return AsymKVCache::create({1, c.kv_heads, c.key_dim, c.value_dim}, *AsymKVPolicy::table({{keys, values}}), options);
}

/// Queries are small where keys of one or two bits would make the bound wider than the output, which is about 1.
class AttentionTrial {
 public:
  explicit AttentionTrial(const AttentionCase& c)
      : case_(c),
        keys_(random_matrix(c.length, c.kv_heads * c.key_dim, 1)),
        values_(random_matrix(c.length, c.kv_heads * c.value_dim, 2).array() + 1.0f),
        queries_(random_matrix(c.queries, c.heads * c.key_dim, 3) * (c.key_bits <= 2 ? 0.01f : 1.0f)),
        variant_(c.variant, c.queries, c.heads, c.length) {}

  /// Gives the cache all tokens as numbers of type T, to which they are rounded, the queries' own in a second append;
  /// and attends, in as many slices as the cache has threads.
  template <class T>
  RowMatrix attend(KVCache& cache) {
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    keys_ = representable<T>(keys_);
    values_ = representable<T>(values_);
    queries_ = representable<T>(queries_);
    const Matrix keys = keys_.cast<T>(), values = values_.cast<T>(), queries = queries_.cast<T>();
    for (const auto& [first, count] : {std::pair(Index(0), past()), std::pair(past(), case_.queries)}) {
      const Status status = cache.append(0, tensor(keys.middleRows(first, count), case_.kv_heads),
                                         tensor(values.middleRows(first, count), case_.kv_heads));
      EXPECT_TRUE(status.ok()) << status.message();
    }
    RowMatrix output(case_.queries, case_.heads * case_.value_dim);
    const Status status = cache.attend_parallel(0, tensor(queries, case_.heads), tensor(output, case_.heads),
                                                variant_.params(case_.window), [](Index count, const auto& task) {
                                                  for (Index i = count - 1; i >= 0; --i) task(i);
                                                });
    EXPECT_TRUE(status.ok()) << status.message();
    return output;
  }

  /// After attend(): what the reference makes of the same.
  RowMatrix reference(const KVCache& cache) {
    RowMatrix output(case_.queries, case_.heads * case_.value_dim);
    const Status status = reference_attention(cache, 0, tensor(queries_, case_.heads), tensor(output, case_.heads),
                                              variant_.params(case_.window));
    EXPECT_TRUE(status.ok()) << status.message();
    return output;
  }

  /// Compares with the oracle over what is kept of the tokens: those sealed by the second append quantized, those of
  /// 16-bit sides as halves, others as the cache rounds them.
  Comparison compare(const RowMatrix& output, oracle::Rounding rounding) const {
    const auto rounding_of = [&](int bits) { return bits == 16 ? oracle::half : rounding; };
    const double scale = 1.0 / std::sqrt(double(case_.key_dim));
    Comparison result;
    for (Index h = 0; h < case_.heads; ++h) {
      const Index kv = h / (case_.heads / case_.kv_heads);
      oracle::Kept k(head_of(keys_, kv, case_.key_dim), rounding_of(case_.key_bits));
      oracle::Kept v(head_of(values_, kv, case_.value_dim), rounding_of(case_.value_bits));
      oracle::quantize_keys(k, sealed_keys(), case_.group, case_.key_bits);
      oracle::quantize_values(v, sealed_values(), case_.group, case_.value_bits);
      for (Index q = 0; q < case_.queries; ++q) {
        const oracle::Matrix query = head_of(queries_.row(q), h, case_.key_dim);
        const auto [first, last] = variant_.visible(q, case_.window);
        const oracle::Attention expected =
            oracle::attention(query.data, k, v, first, last, scale, variant_.terms(q, h));
        if (variant_.has_lse()) compare_lse(double(variant_.lse(q, h)), expected, result);
        for (Index i = 0; i < case_.value_dim; ++i)
          compare_element(double(output(q, h * case_.value_dim + i)), expected, std::size_t(i), result);
      }
    }
    return result;
  }
  Comparison compare(const RowMatrix& output) const { return compare(output, oracle::exact); }

 private:
  double score_bound(const oracle::Attention& expected) const {
    return support::score_bound(expected, row_errors(rows(), case_.key_bits));
  }
  void compare_element(double output, const oracle::Attention& expected, std::size_t i, Comparison& result) const {
    const double bound =
        score_bound(expected) * expected.magnitude[i] + row_errors(rows(), case_.value_bits) * expected.rounding[i];
    note(std::fabs(output - expected.output[i]), bound, result);
  }

  /// Of weights that are each off by a share, the sum is off by that share at most.
  void compare_lse(double lse, const oracle::Attention& expected, Comparison& result) const {
    if (!std::isfinite(expected.lse)) return note(lse == expected.lse ? 0.0 : 1.0, 0.0, result);
    note(std::fabs(lse - expected.lse), score_bound(expected) + kErrorConstant * 0x1p-24 * std::fabs(expected.lse),
         result);
  }

  static void note(double error, double bound, Comparison& result) {
    if (!(error <= bound)) ++result.outside;
    if (error > result.worst * bound) result.worst = error / bound;
  }

  static oracle::Matrix head_of(const RowMatrix& x, Index head, Index dim) {
    oracle::Matrix m(int(x.rows()), int(dim));
    for (Index t = 0; t < x.rows(); ++t)
      for (Index c = 0; c < dim; ++c) m(int(t), int(c)) = double(x(t, head * dim + c));
    return m;
  }

  /// Of a kv head.
  Index rows() const { return case_.queries * case_.heads / case_.kv_heads; }
  /// Tokens before the last append; what they made due, that append sealed.
  Index past() const { return case_.length - case_.queries; }
  int sealed_keys() const { return case_.key_bits > 8 ? 0 : int(past() / case_.residual * case_.residual); }
  int sealed_values() const { return case_.value_bits > 8 ? 0 : int(std::max(Index(0), past() - case_.residual)); }

  AttentionCase case_;
  RowMatrix keys_, values_, queries_;
  VariantNumbers variant_;
};

}  // namespace support
