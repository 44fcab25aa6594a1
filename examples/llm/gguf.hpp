// gguf.hpp: reads GGUF files, versions 2 and 3: metadata by key, tensors as float matrices. Used by the model and the
// tokenizer. Every offset, count and length is checked against the file before it is used; what does not fit, or has
// the wrong type, throws std::runtime_error with a sentence that names the file and the part.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "mapped_file.hpp"
#include "matrix.hpp"

namespace llm {

/// Numbers of the tensor types in the file format.
enum class TensorType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q8_0 = 8,
  q4_k = 12,
  q6_k = 14,
  bf16 = 30
};

class GgufFile {
 public:
  explicit GgufFile(const std::string& path);

  bool has(const std::string& key) const { return metadata_.count(key) != 0; }
  const std::string& text(const std::string& key) const;
  const std::vector<std::string>& texts(const std::string& key) const;
  const std::vector<double>& numbers(const std::string& key) const;
  double number(const std::string& key) const;
  /// A whole number in 1..2^31-1, as all sizes of a model are.
  Index size(const std::string& key) const;
  bool flag(const std::string& key, bool otherwise) const;

  bool has_tensor(const std::string& name) const { return tensors_.count(name) != 0; }
  std::vector<std::string> tensor_names() const;
  /// Dequantizes a tensor into `out`, whose shape it must have. A vector is a matrix of one row.
  void read(const std::string& name, Eigen::Ref<Matrix> out) const;

  const std::string& path() const { return path_; }

 private:
  using Value = std::variant<double, bool, std::string, std::vector<double>, std::vector<std::string>>;
  struct Tensor {
    Index rows = 1, columns = 1;
    TensorType type = TensorType::f32;
    const unsigned char* data = nullptr;
  };
  class Reader;

  Value read_value(Reader& reader, const std::string& key, std::uint32_t type) const;
  void read_tensors(Reader& reader, std::uint64_t count);
  template <class T>
  const T& value(const std::string& key, const char* type) const;

  std::string path_;
  MappedFile file_;
  std::map<std::string, Value> metadata_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace llm
