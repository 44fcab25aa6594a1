// draft_tree.cpp: speculative decoding. A small model drafts a tree of tokens, one attend of the large one verifies all
// of its paths, and the cache keeps the tokens of the one that greedy decoding takes.
#include <cstdio>
#include <limits>

#include "toy_model.hpp"

namespace {

using namespace asymkv;
using toy::LayerStep, toy::Matrix, toy::Token, toy::Tokens;

constexpr Index kPrompt = 600, kTokens = 300, kDepth = 3, kChunk = 128;

/// A text that grows, and the logits of all that is decoded of it.
struct Decoded {
  Tokens text;
  std::vector<Eigen::RowVectorXf> logits;

  void add(const Eigen::RowVectorXf& next) {
    logits.push_back(next);
    text.push_back(toy::greatest(next));
  }
};

/// Nodes in the order of their depth; node 0 is the last token that is known.
struct Tree {
  Tokens tokens;
  std::vector<Index> parents, depths;

  Index size() const { return Index(tokens.size()); }
  void add(Token token, Index parent) {
    tokens.push_back(token);
    parents.push_back(parent);
    depths.push_back(parent < 0 ? 0 : depths[std::size_t(parent)] + 1);
  }
};

/// The draft model's greedy continuation of `text`, and at each depth its second choice beside it. Its cache has the
/// tokens that are known, but for some of the last.
Status draft(const toy::Model& model, const Tokens& text, KVCache& cache, Tree& tree) {
  Matrix logits;
  Status status = toy::feed(model, Tokens(text.begin() + cache.length(), text.end()), cache, logits);
  tree.add(text.back(), -1);
  for (Index depth = 0, parent = 0; depth < kDepth && status.ok(); ++depth) {
    if (depth > 0) status = toy::feed(model, {tree.tokens[std::size_t(parent)]}, cache, logits);
    const Token first = toy::greatest(logits);
    logits(logits.rows() - 1, first) = -std::numeric_limits<float>::infinity();
    tree.add(first, parent);
    tree.add(toy::greatest(logits), parent);
    parent = tree.size() - 2;
  }
  return status.ok() ? cache.trim(Index(text.size())) : status;
}

/// Of all nodes on all tokens: a node sees what is known, its ancestors and itself.
Matrix tree_mask(const Tree& tree, Index known) {
  Matrix mask = Matrix::Zero(tree.size(), known + tree.size());
  mask.rightCols(tree.size()).setConstant(-std::numeric_limits<float>::infinity());
  for (Index node = 0; node < tree.size(); ++node)
    for (Index seen = node; seen >= 0; seen = tree.parents[std::size_t(seen)]) mask(node, known + seen) = 0.0f;
  return mask;
}

/// The nodes that greedy decoding takes, the first one first; the tokens behind each of them go to `decoded`.
std::vector<Index> accept(const Tree& tree, const Matrix& logits, Decoded& decoded) {
  std::vector<Index> path;
  for (Index node = 0, next = 0; next < tree.size();) {
    node = next;
    path.push_back(node);
    decoded.add(logits.row(node));
    for (next = node + 1; next < tree.size(); ++next)
      if (tree.parents[std::size_t(next)] == node && tree.tokens[std::size_t(next)] == decoded.text.back()) break;
  }
  return path;
}

/// Feeds the tree in one step, then appends the path that is accepted anew, since its tokens are to lie side by side.
Status verify(const toy::Model& model, const Tree& tree, KVCache& cache, Decoded& decoded) {
  const Index known = cache.length();
  const Matrix mask = tree_mask(tree, known);
  AttentionParams params;
  params.mask = tensor(mask.data(), tree.size(), 1, mask.cols());
  std::vector<Index> positions = tree.depths;
  for (Index& position : positions) position += known;
  std::vector<LayerStep> steps;
  Matrix logits;
  Status status = model.forward(tree.tokens, positions, logits, [&](Index layer, LayerStep& step) {
    Status appended = cache.append(layer, tensor(step.keys, model.kv_heads), tensor(step.values, model.kv_heads));
    if (!appended.ok()) return appended;
    steps.push_back(step);
    return cache.attend(layer, tensor(step.queries, model.heads), tensor(step.output, model.heads), params);
  });
  if (status.ok()) status = cache.trim(known);
  for (Index node : accept(tree, logits, decoded))
    for (Index layer = 0; layer < model.shape().layers && status.ok(); ++layer) {
      const LayerStep& step = steps[std::size_t(layer)];
      status = cache.append(layer, tensor(step.keys.row(node), model.kv_heads),
                            tensor(step.values.row(node), model.kv_heads));
    }
  return status;
}

/// What plain greedy decoding makes of the same text.
struct Difference {
  Index tokens = 0;     ///< that it would not have chosen
  float logits = 0.0f;  ///< the greatest
};
Status find_difference(const toy::Model& model, const Decoded& decoded, KVCache& cache, Difference& difference) {
  const auto first = decoded.text.begin();
  Matrix logits;
  Status status = toy::prefill(model, Tokens(first, first + kPrompt), kChunk, cache, logits);
  for (std::size_t i = 0; i < decoded.logits.size() && status.ok(); ++i) {
    if (i > 0) status = toy::feed(model, {first[Index(kPrompt + i) - 1]}, cache, logits);
    difference.tokens += toy::greatest(logits) != first[Index(kPrompt + i)];
    difference.logits = std::max(difference.logits, (logits.bottomRows(1) - decoded.logits[i]).cwiseAbs().maxCoeff());
  }
  return status;
}

/// Whether two caches have the same keys and values in the first layer, which depend on nothing but the tokens.
bool same_first_layer(KVCache& a, KVCache& b) {
  const Index length = a.length(0), dim = a.shape().key_dim;
  Matrix of_a(length, dim), of_b(length, dim);
  bool same = length == b.length(0) && a.seal().ok() && b.seal().ok();
  for (Index head = 0; head < a.shape().kv_heads; ++head) {
    same = same && a.keys(0, head, 0, tensor(of_a)).ok() && b.keys(0, head, 0, tensor(of_b)).ok() && of_a == of_b;
    same = same && a.values(0, head, 0, tensor(of_a)).ok() && b.values(0, head, 0, tensor(of_b)).ok() && of_a == of_b;
  }
  return same;
}

/// Decodes with drafts under a policy, and without.
Status compare(const char* policy_name, const Difference& bound, bool& passed) {
  const toy::Model large, small(1);  // the first layer of the large one
  const auto policy = AsymKVPolicy::parse(policy_name, large.shape().layers);
  const auto small_policy = AsymKVPolicy::parse(policy_name, small.shape().layers);
  if (!policy.ok()) return policy.status();
  if (!small_policy.ok()) return small_policy.status();
  CacheOptions options;
  options.residual_length = 32;
  auto plain = AsymKVCache::create(large.shape(), *policy, options);
  auto cache = AsymKVCache::create(large.shape(), *policy, options);  // a tree comes at once, and goes before the next
  options.rollback_tokens = kDepth;  // drafts come one by one, each may seal tokens, and not all of them stay
  auto small_cache = AsymKVCache::create(small.shape(), *small_policy, options);
  if (!plain.ok()) return plain.status();
  if (!cache.ok()) return cache.status();
  if (!small_cache.ok()) return small_cache.status();

  Decoded decoded{toy::random_tokens(kPrompt, 3), {}};
  const Tokens& text = decoded.text;
  Matrix logits;
  Status status = toy::prefill(small, text, kChunk, *small_cache, logits);
  if (status.ok()) status = toy::prefill(large, text, kChunk, *cache, logits);
  if (status.ok()) decoded.add(logits.bottomRows(1));
  Index steps = 0;
  for (; status.ok() && Index(text.size()) < kPrompt + kTokens; ++steps) {
    Tree tree;
    status = draft(small, text, *small_cache, tree);
    if (status.ok()) status = verify(large, tree, *cache, decoded);
  }
  Difference difference;
  if (status.ok()) status = find_difference(large, decoded, *plain, difference);
  const Tokens rest(text.begin() + small_cache->length(), text.end() - 1);
  if (status.ok() && !rest.empty()) status = toy::feed(small, rest, *small_cache, logits);
  if (!status.ok()) return status;
  std::printf("%s: %d tokens in %d steps, %d of them not plain decoding's; its logits differ by %.1e at most\n",
              policy_name, int(text.size()) - int(kPrompt), int(steps), int(difference.tokens),
              double(difference.logits));
  passed = difference.tokens <= bound.tokens && difference.logits <= bound.logits && same_first_layer(*cache, *plain) &&
           same_first_layer(*small_cache, *plain);
  return {};
}

}  // namespace

int main() {
  // In float the tokens are those of plain greedy decoding, each one. A packed cache quantizes what leaves its window
  // at the start of a step, so a tree of several tokens sees a few more of them exactly than single steps do: where two
  // tokens are as good as each other, the other one may win.
  for (const auto& [policy, bound] :
       {std::pair<const char*, Difference>{"float", {0, 1e-3f}}, {"k8v8", {4, 0.02f}}, {"k4v4", {20, 0.2f}}}) {
    bool passed = false;
    if (Status status = compare(policy, bound, passed); !status.ok()) return std::printf("%s\n", status.message()), 1;
    if (!passed) return std::printf("%s: decoding with drafts is not plain decoding\n", policy), 1;
  }
}
