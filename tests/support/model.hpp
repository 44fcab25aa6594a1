// model.hpp: what a cache must hold after any calls, token by token in plain vectors, from what the headers promise and
// the numbers of oracle.hpp; shares no code with the library. Used by model_test.cpp.
#pragma once

#include "support/oracle.hpp"

namespace model {

constexpr int kPageTokens = 128;

/// Min-max with metadata in fp16, of which the oracle knows the numbers; 16 and 32 bits are not packed.
struct Format {
  int bits = 32, group = 32;
  bool packed() const { return bits <= 8; }
  friend bool operator==(const Format& a, const Format& b) { return a.bits == b.bits && a.group == b.group; }
};

/// What does not change about one side of one layer.
struct SideRules {
  bool keys = true;
  Format format = {};
  int heads = 1, dim = 1, residual = 128, rollback = 0, sinks = 0;
};

/// Tokens [begin, end), whose groups of keys are counted from token `origin` on.
struct Page {
  int origin = 0, begin = 0, end = 0;
  Format format = {};
};

/// Bytes of a page for each head: 16 lanes by 32 of depth make a tile, and each group has 4 bytes for each of 16.
inline int panel_bytes(const SideRules& rules, const Format& format) {
  const auto up = [](int n, int multiple) { return (n + multiple - 1) / multiple * multiple; };
  const int lanes = rules.keys ? kPageTokens : rules.dim, depth = rules.keys ? rules.dim : kPageTokens;
  const int codes = up(lanes, 16) * up(depth, 32) * format.bits / 8;
  return up(codes + 4 * (up(lanes, format.group) / format.group) * up(depth, 16), 64);
}

/// Keys or values of one layer. Tokens before `sealed` are sinks or quantized; those from `exact_from` on could come
/// back as they were appended.
class Side {
 public:
  explicit Side(const SideRules& rules) : rules_(rules) {}

  const SideRules& rules() const { return rules_; }
  int length() const { return int(numbers_.size()) / width(); }
  int sealed() const { return sealed_; }
  const std::vector<Page>& pages() const { return pages_; }

  /// What element c of a head reads back as, and what Kept says of it.
  float number(int token, int head, int c) const { return numbers_[at(token, head, c)]; }
  float magnitude(int token, int head, int c) const { return magnitudes_[at(token, head, c)]; }
  float code(int token, int head, int c) const { return codes_[at(token, head, c)]; }
  float scale(int token, int head, int c) const { return scales_[at(token, head, c)]; }

  /// Quantizes what is due: keys in runs of R, of which sinks shorten the first; values all but the last R.
  void seal() {
    if (!rules_.format.packed()) return;
    if (!rules_.keys && length() - rules_.residual > sealed_) seal_until(length() - rules_.residual);
    while (rules_.keys && next_run() <= length()) {
      const int end = next_run();
      seal_until(end);
      runs_.push_back(end);
    }
    exact_from_ = std::max(exact_from_, needed_from());
  }

  /// [tokens, heads, dim]. What is due is sealed before.
  void append(const float* tokens, int count) {
    seal();
    for (int i = 0; i < count * width(); ++i) {
      const float x = rules_.format.bits == 16 ? float(oracle::half(double(tokens[i]))) : tokens[i];
      exact_.push_back(x);
      numbers_.push_back(x);
      magnitudes_.push_back(std::fabs(x));
    }
    codes_.resize(exact_.size());
    scales_.resize(exact_.size());
    if (sealed_ < rules_.sinks) sealed_ = exact_from_ = std::min(rules_.sinks, length());
    if (rules_.format.packed()) exact_from_ = std::max(exact_from_, needed_from());
  }

  void trim(int tokens) {
    if (rules_.format.packed()) unseal(std::max(exact_from_, sealed_token_by_token(tokens)));
    for (std::vector<float>* x : {&exact_, &numbers_, &magnitudes_, &codes_, &scales_})
      x->resize(std::size_t(tokens * width()));
    if (tokens >= sealed_) return;
    sealed_ = exact_from_ = tokens;
    cut(tokens);
  }

  /// Pages before `end` go, but for the last one and the last that cannot be unsealed.
  void remove_front(int end) {
    std::size_t pages = 0;
    while (pages + 1 < pages_.size() && pages_[pages].end <= end && pages_[pages + 1].end <= exact_from_) ++pages;
    pages_.erase(pages_.begin(), pages_.begin() + std::ptrdiff_t(pages));
  }

  /// Whether requantize() changes anything.
  bool concerns(int first, int last, const Format& format) const {
    for (std::size_t i = 0; i < pages_.size(); ++i)
      if (concerns(i, first, last, format)) return true;
    return false;
  }
  /// Pages have 4 formats at most, of which one is that of pages to come.
  bool has_room(const Format& format) const {
    std::vector<Format> others{format};
    for (const Page& page : pages_)
      if (std::find(others.begin(), others.end(), page.format) == others.end()) others.push_back(page.format);
    return others.size() - std::size_t(std::count(others.begin(), others.end(), rules_.format)) <= 3;
  }
  void requantize(int first, int last, const Format& format) {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (!concerns(i, first, last, format)) continue;
      quantize(pages_[i], pages_[i].begin, pages_[i].end, format);
      pages_[i].format = format;
    }
  }

 private:
  int width() const { return rules_.heads * rules_.dim; }
  std::size_t at(int token, int head, int c) const {
    return std::size_t((token * rules_.heads + head) * rules_.dim + c);
  }
  int sinks() const { return std::min(rules_.sinks, length()); }

  int next_run() const {
    const int r = rules_.residual;
    return sealed_ == sinks() ? (sealed_ / r + 1) * r : sealed_ + r;
  }
  /// The last end of a run of keys before token `length`: what would be sealed of so many tokens that came one by one.
  int run_before(int length) const {
    int end = sinks();
    for (int run : runs_)
      if (run < length) end = run;
    return end;
  }
  int sealed_token_by_token(int length) const {
    return rules_.keys ? run_before(length) : length - 1 - rules_.residual;
  }
  /// Tokens from here on are kept in full precision as well, for a trim by so many as may be rolled back.
  int needed_from() const {
    if (rules_.rollback == 0) return sealed_;
    return std::min(sealed_, std::max(sinks(), sealed_token_by_token(length() - rules_.rollback)));
  }

  bool takes_more(const Page& page) const {
    const int slots = page.end - page.origin;
    return page.format == rules_.format && slots < kPageTokens && !(rules_.keys && slots % page.format.group != 0);
  }
  /// Group by group of keys, which is token by token of values.
  void seal_until(int end) {
    while (sealed_ < end) {
      if (pages_.empty() || !takes_more(pages_.back()))
        pages_.push_back(
            {sealed_ == sinks() ? sealed_ / kPageTokens * kPageTokens : sealed_, sealed_, sealed_, rules_.format});
      Page& page = pages_.back();
      const int group = rules_.keys ? page.format.group : 1;
      page.end = std::min(end, page.origin + ((sealed_ - page.origin) / group + 1) * group);
      quantize(page, sealed_, page.end, page.format);
      sealed_ = page.end;
    }
  }

  void unseal(int until) {
    if (until >= sealed_) return;
    for (std::size_t i = at(until, 0, 0); i < at(sealed_, 0, 0); ++i) {
      numbers_[i] = exact_[i];
      magnitudes_[i] = std::fabs(exact_[i]);
      codes_[i] = scales_[i] = 0.0f;
    }
    sealed_ = until;
    cut(until);
  }
  void cut(int tokens) {
    while (!pages_.empty() && pages_.back().begin >= tokens) pages_.pop_back();
    if (!pages_.empty()) pages_.back().end = std::min(tokens, pages_.back().end);
    while (!runs_.empty() && runs_.back() > tokens) runs_.pop_back();
  }

  bool concerns(std::size_t i, int first, int last, const Format& format) const {
    const Page& page = pages_[i];
    const bool complete = i + 1 < pages_.size() || !takes_more(page);
    return complete && page.begin >= first && page.end <= std::min(last, exact_from_) &&
           panel_bytes(rules_, format) < panel_bytes(rules_, page.format);
  }

  /// What tokens [begin, end) of a page read back as becomes what the format keeps of it.
  void quantize(const Page& page, int begin, int end, const Format& format) {
    std::vector<std::size_t> group;
    const int g = format.group, heads = rules_.heads, dim = rules_.dim;
    if (rules_.keys) {
      for (int t = begin, next = 0; t < end; t = next) {
        next = std::min(end, page.origin + ((t - page.origin) / g + 1) * g);
        for (int head = 0; head < heads; ++head)
          for (int c = 0; c < dim; ++c) {
            group.clear();
            for (int i = t; i < next; ++i) group.push_back(at(i, head, c));
            quantize(group, format.bits);
          }
      }
      return;
    }
    for (int t = begin; t < end; ++t)
      for (int head = 0; head < heads; ++head)
        for (int first = 0; first < dim; first += g) {
          group.clear();
          for (int c = first; c < std::min(dim, first + g); ++c) group.push_back(at(t, head, c));
          quantize(group, format.bits);
        }
  }
  void quantize(const std::vector<std::size_t>& elements, int bits) {
    std::vector<double> input;
    for (std::size_t i : elements) input.push_back(double(numbers_[i]));
    const oracle::Group q = oracle::quantize(input, bits);
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const double above = q.codes[i] * q.scale;
      numbers_[elements[i]] = float(above + q.minimum);
      magnitudes_[elements[i]] = float(std::fabs(above) + std::fabs(q.minimum));
      codes_[elements[i]] = float(q.codes[i]);
      scales_[elements[i]] = float(q.scale);
    }
  }

  SideRules rules_;
  std::vector<float> exact_, numbers_, magnitudes_, codes_, scales_;
  int sealed_ = 0, exact_from_ = 0;
  std::vector<int> runs_;  ///< where runs of sealed keys end
  std::vector<Page> pages_;
};

struct Layer {
  Side keys, values;
  int removed = 0;  ///< end of the removed tokens, 0 where none are

  void drop_removed() {
    keys.remove_front(removed);
    values.remove_front(removed);
  }
};

/// A cache. Arguments must be such that the cache takes them, but where may_ says otherwise.
class Sequence {
 public:
  Sequence(std::vector<Layer> layers, int sinks) : layers_(std::move(layers)), sinks_(sinks) {}

  const std::vector<Layer>& layers() const { return layers_; }
  const Layer& layer(int i) const { return layers_[std::size_t(i)]; }
  int sinks() const { return sinks_; }
  int length(int i) const { return layer(i).keys.length(); }
  int length() const {
    int least = length(0);
    for (const Layer& layer : layers_) least = std::min(least, layer.keys.length());
    return least;
  }
  bool removed(int i, int token) const { return token >= sinks_ && token < layer(i).removed; }

  void append(int i, const float* keys, const float* values, int tokens) {
    Layer& layer = layers_[std::size_t(i)];
    layer.keys.append(keys, tokens);
    layer.values.append(values, tokens);
    layer.drop_removed();
  }
  void seal() {
    for (Layer& layer : layers_) {
      layer.keys.seal();
      layer.values.seal();
      layer.drop_removed();
    }
  }
  bool may_trim(int tokens) const {
    if (tokens < 0 || tokens > length()) return false;
    for (const Layer& layer : layers_)
      if (tokens > sinks_ && tokens < layer.removed) return false;
    return true;
  }
  void trim(int tokens) {
    for (Layer& layer : layers_) {
      layer.keys.trim(tokens);
      layer.values.trim(tokens);
      if (tokens <= sinks_) layer.removed = 0;
    }
  }
  void remove_front(int i, int end) {
    Layer& layer = layers_[std::size_t(i)];
    if (end <= std::max(sinks_, layer.removed)) return;
    layer.removed = end;
    layer.drop_removed();
  }
  /// format(layer, keys) is the new one.
  template <class FormatOf>
  bool may_requantize(int first, int last, FormatOf format) const {
    for (std::size_t i = 0; i < layers_.size(); ++i)
      for (const Side* side : {&layers_[i].keys, &layers_[i].values}) {
        const Format to = format(int(i), side->rules().keys);
        if (to.packed() && side->concerns(first, last, to) && !side->has_room(to)) return false;
      }
    return true;
  }
  template <class FormatOf>
  void requantize(int first, int last, FormatOf format) {
    for (std::size_t i = 0; i < layers_.size(); ++i)
      for (Side* side : {&layers_[i].keys, &layers_[i].values}) {
        const Format to = format(int(i), side->rules().keys);
        if (side->rules().format.packed() && to.packed()) side->requantize(first, last, to);
      }
  }
  void clear() {
    for (Layer& layer : layers_) layer = {Side(layer.keys.rules()), Side(layer.values.rules())};
  }

 private:
  std::vector<Layer> layers_;
  int sinks_;
};

}  // namespace model
