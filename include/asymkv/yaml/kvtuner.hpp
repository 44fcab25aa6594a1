// kvtuner.hpp: policies as the YAML files of KVTuner (github.com/cmd2001/KVTuner, its calibration_presets), to exchange
// them with other engines. Not part of asymkv.hpp: needs yaml-cpp and exceptions; link asymkv::yaml.
//
//   asymkv: "0:km2v1g128fcsr+1:km1v1g128fcsr@1"    # ours, where nbits alone do not say it
//   0:
//     nbits_key: 2
//     nbits_value: 1
//   1: ...
#pragma once

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "asymkv/policy.hpp"

ASYMKV_NAMESPACE_BEGIN
namespace detail {

/// Bits as KVTuner counts them: whole ones, so those of mixed widths are rounded up.
inline int kvtuner_bits(const Format& format) noexcept { return int(std::ceil(format.payload_bits())); }

/// An error in a file: the line, the name of the entry, what is wrong with it.
inline Status yaml_error(const YAML::Mark& mark, const std::string& entry, const std::string& fault) noexcept {
  return Status::error(ErrorCode::invalid_argument, "policy file, line %d: %.60s %.120s", mark.line + 1, entry.c_str(),
                       fault.c_str());
}

/// A whole number; false unless the node is a scalar that consists of one and nothing else.
inline bool read_number(const YAML::Node& node, Index& number) {
  if (!node.IsScalar()) return false;
  std::string_view text = node.Scalar();
  return take_number(text, number) && text.empty();
}

/// `nbits_key` and `nbits_value` of one layer.
inline Status read_kvtuner_layer(const YAML::Node& node, const std::string& entry, LayerFormat& layer) {
  if (!node.IsMap()) return yaml_error(node.Mark(), entry, "is no map with nbits_key and nbits_value");
  bool seen[2] = {};
  for (const auto& item : node) {
    const std::string name = item.first.IsScalar() ? item.first.Scalar() : std::string();
    const bool values = name == "nbits_value";
    if (!values && name != "nbits_key") return yaml_error(item.first.Mark(), entry, "has '" + name + "', not nbits_*");
    if (seen[values]) return yaml_error(item.first.Mark(), entry, "has " + name + " twice");
    Index bits = 0;
    Format& format = values ? layer.values : layer.keys;
    if (!read_number(item.second, bits) || !check(Format{int(bits)}, values ? Side::values : Side::keys).ok())
      return yaml_error(item.second.Mark(), entry, "has a " + name + " other than 1..6, 8, 16 and 32");
    format = Format{int(bits)};
    seen[values] = true;
  }
  if (!seen[0] || !seen[1]) return yaml_error(node.Mark(), entry, seen[0] ? "lacks nbits_value" : "lacks nbits_key");
  return {};
}

/// What a file says.
struct KvtunerFile {
  std::vector<LayerFormat> layers;
  std::string name;  ///< ours; empty if there is none
  YAML::Mark name_mark;
};

inline Status read_kvtuner_entries(const YAML::Node& root, Index num_layers, KvtunerFile& file) {
  if (!root.IsMap()) return yaml_error(root.Mark(), "the file", "is no map from layers to nbits_key and nbits_value");
  std::vector<bool> seen(std::size_t(num_layers), false);
  for (const auto& item : root) {
    const std::string key = item.first.IsScalar() ? item.first.Scalar() : std::string();
    if (key == "asymkv") {
      if (!item.second.IsScalar() || item.second.Scalar().empty() || !file.name.empty())
        return yaml_error(item.first.Mark(), "'asymkv'", "is not one policy name");
      file.name = item.second.Scalar();
      file.name_mark = item.second.Mark();
      continue;
    }
    Index layer = 0;
    const std::string entry = "layer " + key;
    if (!read_number(item.first, layer)) return yaml_error(item.first.Mark(), "'" + key + "'", "is no layer");
    if (layer >= num_layers)
      return yaml_error(item.first.Mark(), entry, "is beyond the model's " + std::to_string(num_layers) + " layers");
    if (seen[std::size_t(layer)]) return yaml_error(item.first.Mark(), entry, "stands there twice");
    seen[std::size_t(layer)] = true;
    if (Status status = read_kvtuner_layer(item.second, entry, file.layers[std::size_t(layer)]); !status.ok())
      return status;
  }
  for (std::size_t i = 0; i < seen.size(); ++i)
    if (!seen[i]) return yaml_error(root.Mark(), "layer " + std::to_string(i), "is missing");
  return {};
}

/// The policy of a file: ours, which must agree with nbits (a hand that edits those would otherwise be ignored).
inline Result<AsymKVPolicy> kvtuner_policy(const KvtunerFile& file, Index num_layers) {
  if (file.name.empty()) return AsymKVPolicy::table(file.layers);
  Result<AsymKVPolicy> policy = AsymKVPolicy::parse(file.name, num_layers);
  if (!policy.ok()) return yaml_error(file.name_mark, "'asymkv':", policy.status().message());
  for (Index i = 0; i < num_layers; ++i) {
    const LayerFormat &ours = policy->layer(i), &theirs = file.layers[std::size_t(i)];
    if (kvtuner_bits(ours.keys) != theirs.keys.bits || kvtuner_bits(ours.values) != theirs.values.bits)
      return yaml_error(file.name_mark, "'asymkv':",
                        "has other bits than nbits of layer " + std::to_string(i) + "; change both, or remove it");
  }
  return policy;
}

}  // namespace detail

/// The policy in a KVTuner file for a model of `num_layers` layers. Files of KVTuner itself give min-max formats with
/// groups of 32, its `kivi` mode, without sinks; files that write_kvtuner() wrote give the very policy. Other tools'
/// keys are refused, as they may mean something. Errors: invalid_argument with the line and the entry.
inline Result<AsymKVPolicy> read_kvtuner(const std::string& text, Index num_layers) {
  if (Status status = detail::check_num_layers(num_layers); !status.ok()) return status;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() != 1)
      return Status::error(ErrorCode::invalid_argument, "policy file: holds %zu documents, must be one",
                           documents.size());
    detail::KvtunerFile file;
    file.layers.resize(std::size_t(num_layers));
    if (Status status = detail::read_kvtuner_entries(documents[0], num_layers, file); !status.ok()) return status;
    return detail::kvtuner_policy(file, num_layers);
  } catch (const YAML::Exception& error) {
    return detail::yaml_error(error.mark, "the file", "is no YAML: " + error.msg);
  }
}

/// A policy as a KVTuner file: one entry a layer, bits rounded up to whole ones. What these do not say (fit, groups,
/// metadata, widths, sinks) stands in the additional entry `asymkv`, which readers that look up layers by number do not
/// see; it is left out where nbits say all.
inline std::string write_kvtuner(const AsymKVPolicy& policy) {
  std::string text;
  std::vector<LayerFormat> plain;
  for (Index i = 0; i < policy.num_layers(); ++i) {
    const int key_bits = detail::kvtuner_bits(policy.layer(i).keys);
    const int value_bits = detail::kvtuner_bits(policy.layer(i).values);
    plain.push_back({Format{key_bits}, Format{value_bits}});
    text += std::to_string(i) + ":\n  nbits_key: " + std::to_string(key_bits) +
            "\n  nbits_value: " + std::to_string(value_bits) + "\n";
  }
  const Result<AsymKVPolicy> said = AsymKVPolicy::table(std::move(plain));
  if (said.ok() && *said == policy) return text;
  return "asymkv: \"" + policy.name() + "\"\n" + text;
}

ASYMKV_NAMESPACE_END
