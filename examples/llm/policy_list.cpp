// policy_list.cpp: split at commas outside braces, then replace `all`, `ablation` and braces.
#include "policy_list.hpp"

#include <algorithm>
#include <asymkv/policy.hpp>
#include <stdexcept>

namespace llm {
namespace {

[[noreturn]] void refuse(std::string_view entry, const char* why) {
  throw std::runtime_error("policies: '" + std::string(entry) + "' " + why);
}

/// The parts between commas; commas inside braces separate nothing.
std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> parts;
  std::size_t start = 0;
  bool inside = false;
  for (std::size_t i = 0; i <= list.size(); ++i) {
    if (i == list.size() || (list[i] == ',' && !inside)) {
      parts.push_back(list.substr(start, i - start));
      start = i + 1;
    } else if (list[i] == '{' || list[i] == '}') {
      inside = list[i] == '{';
    }
  }
  return parts;
}

/// One entry with its braces replaced, the first brace varying slowest.
std::vector<std::string> sweep(std::string_view entry) {
  const std::size_t open = entry.find('{'), close = entry.find('}');
  if (open == std::string_view::npos && close == std::string_view::npos) return {std::string(entry)};
  if (open == std::string_view::npos || close == std::string_view::npos || close < open)
    refuse(entry, "has a brace without its partner");
  const std::string_view alternatives = entry.substr(open + 1, close - open - 1);
  if (alternatives.find('{') != std::string_view::npos) refuse(entry, "has braces inside braces");
  std::vector<std::string> names;
  const std::vector<std::string> rests = sweep(entry.substr(close + 1));
  for (const std::string_view alternative : split(alternatives))
    for (const std::string& rest : rests)
      names.push_back(std::string(entry.substr(0, open)) + std::string(alternative) + rest);
  return names;
}

/// The presets of the library, the smallest first.
std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (int i = 0; i < asymkv::preset_count; ++i) names.emplace_back(asymkv::presets()[i].name);
  return names;
}

std::vector<std::string> all_policies(Index layers) {
  const std::string whole = std::to_string(layers), half = std::to_string(layers / 2);
  std::vector<std::string> names = {
      "float",           "KIVI-4", "KIVI-2", "AsymKV-" + whole + "/0", "AsymKV-0/" + whole, "AsymKV-" + half + "/0",
      "AsymKV-0/" + half};
  for (std::string& name : preset_names()) names.push_back(std::move(name));
  return names;
}

/// What each technique does alone and what it adds to the others, against k2v1 with KIVI's quantizer; the first row of
/// each block is what its others differ from. Mixed widths bring the fit, compact metadata and groups of 128 with them,
/// so only the values lose these; without the fit nothing can be symmetric.
std::vector<std::string> ablation() {
  return {
      "k2v1",
      "k2v1@1",        // sink
      "k2fv1f",        // fitted scales
      "k2cv1c",        // compact metadata
      "k2g128v1g128",  // larger groups
      "k2v1r",         // rotated values
      "k2v1fs",        // symmetric values
      "k2v1fsr",       // both
      "km2v1",         // mixed widths
      "km2v1g128fcsr@1",
      "km2v1g128fcsr",         // no sink
      "km2v1g128cr@1",         // values not fitted
      "km2v1g128fsr@1",        // values without compact metadata
      "km2v1fcsr@1",           // values in groups of 32
      "km2v1g128fcs@1",        // not rotated
      "km2v1g128fcr@1",        // not symmetric
      "k2g128fcv1g128fcsr@1",  // the same bits for every channel
      "KIVI-2",
      "KIVI-2@1",
      "km2v2g128fcsr@1",
  };
}

std::vector<std::string> expand(std::string_view entry, Index layers) {
  if (entry == "all") return all_policies(layers);
  return entry == "ablation" ? ablation() : sweep(entry);
}

}  // namespace

std::vector<std::string> expand_policies(std::string_view list, Index layers) {
  std::vector<std::string> policies;
  for (const std::string_view entry : split(list)) {
    if (entry.empty()) refuse(list, "has an empty entry");
    for (std::string& name : expand(entry, layers))
      if (std::find(policies.begin(), policies.end(), name) == policies.end()) policies.push_back(std::move(name));
  }
  return policies;
}

}  // namespace llm
