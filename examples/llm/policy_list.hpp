// policy_list.hpp: the lists that --policies takes. Used by main and the tests.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "matrix.hpp"

namespace llm {

/// The policies of a list for a model of that many layers, in order, each once. Entries are separated by commas: a
/// policy's name; a sweep, whose braces stand for each of their alternatives in turn (`k{1,2}v{1,2}` is k1v1, k1v2,
/// k2v1, k2v2); `all`: float, KIVI and AsymKV at the paper's settings, and the presets of the library; or `ablation`:
/// what the presets are made of, each technique alone and all without it. Names themselves are not checked. Throws
/// std::runtime_error for unbalanced or nested braces and empty entries.
std::vector<std::string> expand_policies(std::string_view list, Index layers);

}  // namespace llm
