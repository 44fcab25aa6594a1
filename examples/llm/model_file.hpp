// model_file.hpp: a model file, open, with all that is made from it. Used by main, eval's report and the tests.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "model.hpp"
#include "tokenizer.hpp"

namespace llm {

struct ModelFile {
  /// Throws std::runtime_error for files that cannot be read or are not supported.
  explicit ModelFile(const std::string& path) : file(path), tokenizer(read_tokenizer(file)), model(file) {}

  const GgufFile file;
  const std::unique_ptr<Tokenizer> tokenizer;
  const Model model;

  std::string name() const {
    return file.has("general.name") ? file.text("general.name") : std::filesystem::path(file.path()).stem().string();
  }
};

}  // namespace llm
