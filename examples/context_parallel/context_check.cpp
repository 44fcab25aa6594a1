#include "context_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "progress.hpp"
#include "split.hpp"

namespace context_parallel {
namespace {

using Doubles = std::vector<double>;

double norm(const Doubles& x) {
  double squares = 0.0;
  for (const double number : x) squares += number * number;
  return std::sqrt(squares);
}

double distance(const Doubles& a, const Doubles& b) {
  Doubles difference(a);
  for (std::size_t i = 0; i < a.size(); ++i) difference[i] -= b[i];
  return norm(difference);
}

/// A head of an AttentionOutput's floats: its output, and behind it its lse.
struct Head {
  Doubles output;
  double lse;
};

Head head_of(const Floats& floats, Index head, Index value_dim) {
  const float* const first = floats.data() + head * (value_dim + 1);
  return {Doubles(first, first + value_dim), double(first[value_dim])};
}

/// Of one head of all parts.
Doubles merge_in_double(const std::vector<Head>& parts) {
  double greatest = parts.front().lse, sum = 0.0;
  for (const Head& part : parts) greatest = std::max(greatest, part.lse);
  Doubles output(parts.front().output.size(), 0.0);
  for (const Head& part : parts) {
    const double weight = std::exp(part.lse - greatest);
    sum += weight;
    for (std::size_t i = 0; i < output.size(); ++i) output[i] += weight * part.output[i];
  }
  for (double& x : output) x /= sum;
  return output;
}

/// One line of the report, over all heads.
class Line {
 public:
  explicit Line(const char* name) : name_(name) {}

  void add(double difference, double bound, double output) {
    relative_ = std::max(relative_, difference / output);
    bound_ = std::max(bound_, bound / output);
    share_ = std::max(share_, difference <= bound ? difference / bound : INFINITY);
  }
  void print() const {
    std::printf("  %-10s difference %.1e of the output's norm, bound %.1e; closest head at %.0f%% of its bound\n",
                name_, relative_, bound_, 100.0 * share_);
  }
  void require() const {
    if (!(share_ <= 1.0)) throw std::runtime_error(std::string("check: ") + name_ + ": the bound is exceeded");
  }

 private:
  const char* name_;
  double relative_ = 0.0, bound_ = 0.0, share_ = 0.0;
};

Doubles numbers_of(const std::vector<ExactHead>& heads) {
  Doubles numbers;
  for (const ExactHead& head : heads) numbers.insert(numbers.end(), head.numbers().begin(), head.numbers().end());
  return numbers;
}

/// Head `head` of what all ranks sent.
ExactHead merge_exact(const std::vector<Doubles>& ranks, Index head, Index value_dim) {
  ExactHead merged(value_dim);
  const Index size = Index(ExactHead::size(value_dim));
  for (const Doubles& numbers : ranks)
    merged.merge(ExactHead(Doubles(numbers.begin() + head * size, numbers.begin() + (head + 1) * size)));
  return merged;
}

/// Each rank's `own` tokens; on rank 0 the sum must be `tokens`.
void require_all_tokens(const Ranks& ranks, Index own, Index tokens) {
  Index sum = 0;
  for (const Doubles& length : ranks.collect(Doubles{double(own)})) sum += Index(length[0]);
  if (ranks.rank == 0 && sum != tokens)
    throw std::runtime_error("check: the ranks keep " + std::to_string(sum) + " tokens of " + std::to_string(tokens));
}

void require_same_bits(const std::vector<Floats>& wholes) {
  for (std::size_t rank = 1; rank < wholes.size(); ++rank)
    if (std::memcmp(wholes[rank].data(), wholes[0].data(), wholes[0].size() * sizeof(float)) != 0)
      throw std::runtime_error("check: rank " + std::to_string(rank) + " has another output than rank 0");
}

/// What a side's kernels round to, relative to V. Packed: what rows of queries and weights are rounded to before they
/// meet the codes, to a byte before one and two bits, of which mixed widths have some, else to two; here the worst of
/// all presets and k1v1 to k8v8 is three quarters of it. Full precision: products in float.
double format_rounding(const asymkv::Format& format) {
  if (!format.packed()) return 0.0;
  return format.mixed() || format.bits <= 2 ? 0x1p-5 : 0x1p-8;
}

double packed_rounding(const asymkv::AsymKVPolicy& policy) {
  double rounding = 0.0;
  for (Index layer = 0; layer < policy.num_layers(); ++layer)
    rounding =
        std::max({rounding, format_rounding(policy.layer(layer).keys), format_rounding(policy.layer(layer).values)});
  return rounding;
}

}  // namespace

ContextCheck::ContextCheck(const Options& options, const asymkv::AsymKVPolicy& policy, const Ranks& ranks)
    : options_(options), ranks_(ranks), policy_(policy), tokens_(options.shape(), 0) {
  if (ranks_.rank != 0) return;
  one_.emplace(options_.shape(), policy, 0, options_.context + options_.steps);
  Progress progress(0, "one cache of the whole context, for the check", options_.context);
  for (Index first = 0; first < options_.context; first += Split::block) {
    const Index count = std::min(Split::block, options_.context - first);
    one_->append(first, count);
    progress.at(first + count);
  }
}

void ContextCheck::append_until(Index tokens) {
  if (!one_) return;
  while (one_->cache().length() < tokens) one_->append(one_->cache().length(), 1);
}

double ContextCheck::rounding(const ExactHead& head, Index tokens) const {
  const double packed = packed_rounding(policy_);
  // sums of so many terms, one after the other: a page's tokens, or as many in full precision, and then the pages
  const double terms = double(Split::block + tokens / Split::block);
  // in float: scores and weights, as the library's tests bound them, and sums
  const double in_float = 0x1p-20 * (1.0 + head.score_magnitude()) + 0x1p-24 * terms;
  return head.value_magnitude() * (packed + in_float);
}

void ContextCheck::compare(Index layer, Index token, const asymkv::KVCache& own, const AttentionOutput& part,
                           const AttentionOutput& whole) {
  const Floats query = tokens_.query(layer, token);
  const std::vector<Doubles> exact = ranks_.collect(numbers_of(exact_attention(own, layer, query)));
  const std::vector<Floats> parts = ranks_.collect(part.floats()), wholes = ranks_.collect(whole.floats());
  require_all_tokens(ranks_, own.length(), token + 1);
  if (!one_) return;
  require_same_bits(wholes);
  const Index value_dim = options_.shape().value_dim;
  AttentionOutput one(query_heads, value_dim);
  one_->attend(layer, query, token, one);
  const std::vector<ExactHead> exact_one = exact_attention(one_->cache(), layer, query);
  const Index tokens = one_->cache().length(), longest_part = own.length();  // rank 0's, who has the first block
  Line merge("merge"), kernels("kernels"), one_cache("one cache");
  double greatest_kept = 0.0;
  for (Index head = 0; head < query_heads; ++head) {
    std::vector<Head> of_ranks;
    double greatest_part = 0.0;
    for (const Floats& floats : parts) {
      of_ranks.push_back(head_of(floats, head, value_dim));
      greatest_part = std::max(greatest_part, norm(of_ranks.back().output));
    }
    const Head output = head_of(wholes[0], head, value_dim);
    const double size = norm(output.output);
    // a single part is not merged: its bound is for the check's own rounding
    const double merges = std::max(1, ranks_.count - 1);
    merge.add(distance(output.output, merge_in_double(of_ranks)),
              merges * 0x1p-24 * (8.0 + std::fabs(output.lse)) * greatest_part, size);
    const ExactHead exact_ranks = merge_exact(exact, head, value_dim);
    const ExactHead& exact_whole = exact_one[std::size_t(head)];
    kernels.add(distance(output.output, exact_ranks.output()), rounding(exact_ranks, longest_part), size);
    const double kept = distance(exact_ranks.output(), exact_whole.output());
    greatest_kept = std::max(greatest_kept, kept / size);
    one_cache.add(distance(output.output, head_of(one.floats(), head, value_dim).output),
                  rounding(exact_ranks, longest_part) + rounding(exact_whole, tokens) + kept, size);
    if (packed_rounding(policy_) == 0.0 && !(kept <= 0x1p-36 * exact_whole.value_magnitude()))
      throw std::runtime_error("check: the ranks do not keep the tokens that one cache keeps");
  }
  std::printf("check: layer %lld, query of token %lld of %lld; %d ranks have the same bits\n", (long long)(layer),
              (long long)(token), (long long)(tokens), ranks_.count);
  for (const Line* line : {&merge, &kernels, &one_cache}) line->print();
  std::printf("  kept       difference %.1e of the output's norm, part of the bound above\n", greatest_kept);
  std::fflush(stdout);
  for (const Line* line : {&merge, &kernels, &one_cache}) line->require();
}

}  // namespace context_parallel
