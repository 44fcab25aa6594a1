// variant.hpp: what attention can do beside scale, causal and window, with numbers for it, as the library is asked for
// it and as the oracle is told. Used by attention_trial.hpp.
#pragma once

#include "support/oracle.hpp"
#include "support/support.hpp"

namespace support {

enum class Mask { none, shared, of_heads, hides_rows };

struct Variant {
  bool causal = true;
  std::optional<Index> position;
  float softcap = 0.0f;
  Mask mask = Mask::none;
  bool alibi = false, sinks = false, lse = false;
};

inline std::ostream& operator<<(std::ostream& out, const Variant& v) {
  out << (v.causal ? "" : " not causal") << (v.alibi ? " alibi" : "") << (v.sinks ? " sinks" : "") << " softcap "
      << v.softcap << " mask " << int(v.mask);
  return v.position ? out << " position " << *v.position : out;
}

/// Numbers of a variant for some queries, heads and tokens: a third of a mask's elements hide, others are halves,
/// and Mask::hides_rows hides all tokens from every second query.
class VariantNumbers {
 public:
  VariantNumbers(const Variant& variant, Index queries, Index heads, Index length)
      : variant_(variant), queries_(queries), heads_(heads), length_(length) {
    std::mt19937 generator(17);
    std::normal_distribution<float> normal;
    const Index mask_heads = variant.mask == Mask::none ? 0 : variant.mask == Mask::shared ? 1 : heads;
    for (Index i = 0; i < queries * mask_heads * length; ++i) {
      const bool hidden = generator() % 3 == 0 || (variant.mask == Mask::hides_rows && i / (mask_heads * length) % 2);
      mask_.push_back(hidden ? Eigen::half(-INFINITY) : Eigen::half(normal(generator)));
    }
    for (Index head = 0; head < heads; ++head) {
      slopes_.push_back(std::exp2(-float(head % 8) - 3.0f));
      sinks_.push_back(4.0f + 6.0f * float(head % 4));
    }
    lse = RowMatrix::Constant(queries, heads, NAN);
  }

  /// Holds as long as this does.
  AttentionParams params(Index window) {
    AttentionParams params;
    params.causal = variant_.causal;
    params.window = window;
    params.position = variant_.position;
    params.softcap = variant_.softcap;
    if (!mask_.empty())
      params.mask = asymkv::tensor(static_cast<const Eigen::half*>(mask_.data()), queries_,
                                   Index(mask_.size()) / (queries_ * length_), length_);
    if (variant_.alibi) params.alibi_slopes = {slopes_.data(), heads_};
    if (variant_.sinks) params.sink_logits = {sinks_.data(), heads_};
    if (variant_.lse) params.lse = asymkv::tensor(lse, heads_);
    return params;
  }

  bool has_lse() const { return variant_.lse; }
  Index own_token(Index query) const { return variant_.position.value_or(length_ - queries_) + query; }

  struct Range {
    int first, last;
  };
  Range visible(Index query, Index window) const {
    const Index own = own_token(query);
    const Index last = variant_.causal ? std::clamp(own + 1, Index(0), length_) : length_;
    const Index first = window == 0 ? 0 : std::clamp(own + 1 - window, Index(0), last);
    return {int(first), int(last)};
  }
  oracle::Terms terms(Index query, Index head) const {
    oracle::Terms terms;
    terms.softcap = double(variant_.softcap);
    if (variant_.sinks) terms.sink = double(sinks_[std::size_t(head)]);
    if (!variant_.alibi && mask_.empty()) return terms;
    for (Index t = 0; t < length_; ++t) {
      double added = 0.0;
      if (variant_.alibi) added -= double(slopes_[std::size_t(head)]) * std::fabs(double(own_token(query) - t));
      if (!mask_.empty()) added += double(float(mask_[mask_index(query, head, t)]));
      terms.added.push_back(added);
    }
    return terms;
  }

  RowMatrix lse;  ///< [queries x heads]

 private:
  std::size_t mask_index(Index query, Index head, Index token) const {
    const Index heads = Index(mask_.size()) / (queries_ * length_);
    return std::size_t((query * heads + (heads == 1 ? 0 : head)) * length_ + token);
  }

  Variant variant_;
  Index queries_, heads_, length_;
  std::vector<Eigen::half> mask_;
  std::vector<float> slopes_, sinks_;
};

}  // namespace support
