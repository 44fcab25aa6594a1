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
  void print(double kept) const {
    std::printf("  %-10s difference %.1e, bound %.1e of the output's norm; closest head at %.0f%% of its bound%s",
                name_, relative_, bound_, 100.0 * share_, kept > 0.0 ? "" : "\n");
    if (kept > 0.0) std::printf("; kept otherwise: %.1e\n", kept);
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

void require_same_bits(const std::vector<Floats>& wholes) {
  for (std::size_t rank = 1; rank < wholes.size(); ++rank)
    if (std::memcmp(wholes[rank].data(), wholes[0].data(), wholes[0].size() * sizeof(float)) != 0)
      throw std::runtime_error("check: rank " + std::to_string(rank) + " has another output than rank 0");
}

}  // namespace

ContextCheck::ContextCheck(const Options& options, const Ranks& ranks)
    : options_(options), ranks_(ranks), quantizes_(quantizes(options)), tokens_(options.shape(), 0) {
  if (ranks_.rank != 0) return;
  one_.emplace(options_, 0, options_.context + options_.steps);
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

double ContextCheck::rounding(const ExactHead& head) const {
  return head.value_magnitude() * (quantizes_ ? packed_rounding : 0x1p-20 * (1.0 + head.score_magnitude()));
}

void ContextCheck::compare(Index layer, Index token, const asymkv::KVCache& own, const AttentionOutput& part,
                           const AttentionOutput& whole) {
  const Floats query = tokens_.query(layer, token);
  const std::vector<Doubles> exact = ranks_.collect(numbers_of(exact_attention(own, layer, query)));
  const std::vector<Floats> parts = ranks_.collect(part.floats()), wholes = ranks_.collect(whole.floats());
  if (!one_) return;
  require_same_bits(wholes);
  const Index value_dim = options_.shape().value_dim;
  AttentionOutput one(query_heads, value_dim);
  one_->attend(layer, query, token, one);
  const std::vector<ExactHead> exact_one = exact_attention(one_->cache(), layer, query);
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
    kernels.add(distance(output.output, exact_ranks.output()), rounding(exact_ranks), size);
    const double kept = distance(exact_ranks.output(), exact_whole.output());
    greatest_kept = std::max(greatest_kept, kept / size);
    one_cache.add(distance(output.output, head_of(one.floats(), head, value_dim).output),
                  rounding(exact_ranks) + rounding(exact_whole) + kept, size);
  }
  std::printf("check: layer %lld, query of token %lld of %lld; %d ranks have the same bits\n", (long long)(layer),
              (long long)(token), (long long)(one_->cache().length(layer)), ranks_.count);
  merge.print(0.0);
  kernels.print(0.0);
  one_cache.print(greatest_kept);
  for (const Line* line : {&merge, &kernels, &one_cache}) line->require();
}

}  // namespace context_parallel
