// policy_list.cpp: split at commas outside braces, then replace `all` and braces.
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

}  // namespace

std::vector<std::string> expand_policies(std::string_view list, Index layers) {
  std::vector<std::string> policies;
  for (const std::string_view entry : split(list)) {
    if (entry.empty()) refuse(list, "has an empty entry");
    for (std::string& name : entry == "all" ? all_policies(layers) : sweep(entry))
      if (std::find(policies.begin(), policies.end(), name) == policies.end()) policies.push_back(std::move(name));
  }
  return policies;
}

}  // namespace llm
