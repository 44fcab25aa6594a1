// gguf.cpp: parsing of the header, the metadata and the tensor table.
#include "gguf.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "block_formats.hpp"

namespace llm {
namespace {

// numbers of the metadata types in the file format
enum ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

}  // namespace

/// Takes little-endian values off the front of the file; never beyond its end.
class GgufFile::Reader {
 public:
  Reader(const std::string& path, const MappedFile& file) : path_(path), data_(file.data()), size_(file.size()) {}

  [[noreturn]] void fail(const std::string& reason) const { throw std::runtime_error(path_ + ": " + reason); }

  template <class T>
  T take() {
    T x;
    std::memcpy(&x, take_bytes(sizeof x), sizeof x);
    return x;
  }
  std::string take_text() {
    const auto length = take<std::uint64_t>();
    return std::string(reinterpret_cast<const char*>(take_bytes(length)), length);
  }
  double take_number(std::uint32_t type) {
    switch (type) {
      case u8:
        return take<std::uint8_t>();
      case i8:
        return take<std::int8_t>();
      case u16:
        return take<std::uint16_t>();
      case i16:
        return take<std::int16_t>();
      case u32:
        return take<std::uint32_t>();
      case i32:
        return take<std::int32_t>();
      case f32:
        return double(take<float>());
      case u64:
        return double(take<std::uint64_t>());
      case i64:
        return double(take<std::int64_t>());
      case f64:
        return take<double>();
    }
    fail("metadata type " + std::to_string(type) + " is unknown");
  }
  /// Count of things that take at least `least_bytes` each: more than fit into the rest of the file is a lie.
  std::uint64_t take_count(std::uint64_t least_bytes, const char* what) {
    const auto count = take<std::uint64_t>();
    if (count > (size_ - position_) / least_bytes)
      fail("claims " + std::to_string(count) + " " + what + ", more than the file can hold");
    return count;
  }
  std::size_t position() const { return position_; }

 private:
  const unsigned char* take_bytes(std::uint64_t count) {
    if (count > size_ - position_) fail("is truncated at byte " + std::to_string(size_));
    position_ += count;
    return data_ + position_ - count;
  }

  const std::string& path_;
  const unsigned char* data_;
  std::size_t size_;
  std::size_t position_ = 0;
};

GgufFile::GgufFile(const std::string& path) : path_(path), file_(path) {
  Reader reader(path_, file_);
  if (file_.size() < 4 || std::memcmp(file_.data(), "GGUF", 4) != 0) reader.fail("is not a GGUF file");
  reader.take<std::uint32_t>();
  const auto version = reader.take<std::uint32_t>();
  if (version != 2 && version != 3)
    reader.fail("has GGUF version " + std::to_string(version) + "; 2 and 3, little-endian, are supported");
  const std::uint64_t tensor_count = reader.take_count(24, "tensors");
  const std::uint64_t value_count = reader.take_count(13, "metadata values");
  for (std::uint64_t i = 0; i < value_count; ++i) {
    const std::string key = reader.take_text();
    const auto type = reader.take<std::uint32_t>();
    if (!metadata_.emplace(key, read_value(reader, key, type)).second) reader.fail("has key " + key + " twice");
  }
  read_tensors(reader, tensor_count);
}

GgufFile::Value GgufFile::read_value(Reader& reader, const std::string& key, std::uint32_t type) const {
  if (type == boolean) return reader.take<std::uint8_t>() != 0;
  if (type == string) return reader.take_text();
  if (type != array) return reader.take_number(type);
  const auto element = reader.take<std::uint32_t>();
  if (element == array) reader.fail("key " + key + " holds arrays of arrays, which are not supported");
  if (element == string) {
    std::vector<std::string> texts(reader.take_count(8, "strings"));
    for (std::string& text : texts) text = reader.take_text();
    return texts;
  }
  std::vector<double> numbers(reader.take_count(1, "numbers"));
  for (double& x : numbers) x = element == boolean ? reader.take<std::uint8_t>() : reader.take_number(element);
  return numbers;
}

void GgufFile::read_tensors(Reader& reader, std::uint64_t count) {
  std::map<std::string, std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string name = reader.take_text();
    const auto fail = [&](const std::string& reason) { reader.fail("tensor " + name + " " + reason); };
    const auto dimensions = reader.take<std::uint32_t>();
    if (dimensions < 1 || dimensions > 4)
      fail("has " + std::to_string(dimensions) + " dimensions; 1 to 4 are possible");
    Tensor tensor;
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      const auto extent = reader.take<std::uint64_t>();
      if (extent < 1 || extent > 0x7fffffff) fail("has a dimension of " + std::to_string(extent));
      Index& size = d == 0 ? tensor.columns : tensor.rows;
      if (Index(extent) > 0x7fffffff / size) fail("has too many rows");
      size *= Index(extent);
    }
    tensor.type = TensorType(reader.take<std::uint32_t>());
    const Index block = block_size(tensor.type).elements;
    if (block == 0)
      fail("has type " + std::to_string(std::uint32_t(tensor.type)) + "; supported are " + supported_tensor_types());
    if (tensor.columns % block != 0) fail("has rows that are no multiple of its blocks of " + std::to_string(block));
    offsets[name] = reader.take<std::uint64_t>();
    if (!tensors_.emplace(name, tensor).second) fail("exists twice");
  }
  const std::uint64_t alignment = has("general.alignment") ? std::uint64_t(size("general.alignment")) : 32;
  const std::uint64_t start = (reader.position() + alignment - 1) / alignment * alignment;
  for (auto& [name, tensor] : tensors_) {
    const BlockSize block = block_size(tensor.type);
    const std::uint64_t bytes =
        std::uint64_t(tensor.rows) * std::uint64_t(tensor.columns / block.elements * block.bytes);
    const std::uint64_t offset = offsets[name];
    if (start > file_.size() || offset > file_.size() - start || bytes > file_.size() - start - offset)
      reader.fail("is truncated: tensor " + name + " ends beyond the file");
    tensor.data = file_.data() + start + offset;
  }
}

template <class T>
const T& GgufFile::value(const std::string& key, const char* type) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) throw std::runtime_error(path_ + ": lacks the key " + key);
  const T* x = std::get_if<T>(&found->second);
  if (x == nullptr) throw std::runtime_error(path_ + ": key " + key + " is not " + type);
  return *x;
}

const std::string& GgufFile::text(const std::string& key) const { return value<std::string>(key, "a string"); }
const std::vector<std::string>& GgufFile::texts(const std::string& key) const {
  return value<std::vector<std::string>>(key, "an array of strings");
}
const std::vector<double>& GgufFile::numbers(const std::string& key) const {
  return value<std::vector<double>>(key, "an array of numbers");
}
double GgufFile::number(const std::string& key) const { return value<double>(key, "a number"); }

Index GgufFile::size(const std::string& key) const {
  const double x = number(key);
  if (!(x >= 1.0 && x <= 2147483647.0) || x != std::floor(x))
    throw std::runtime_error(path_ + ": key " + key + " is " + std::to_string(x) + ", not a size");
  return Index(x);
}

bool GgufFile::flag(const std::string& key, bool otherwise) const {
  return has(key) ? value<bool>(key, "a truth value") : otherwise;
}

std::vector<std::string> GgufFile::tensor_names() const {
  std::vector<std::string> names;
  for (const auto& entry : tensors_) names.push_back(entry.first);
  return names;
}

void GgufFile::read(const std::string& name, Eigen::Ref<Matrix> out) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw std::runtime_error(path_ + ": lacks the tensor " + name);
  const Tensor& tensor = found->second;
  if (tensor.rows != out.rows() || tensor.columns != out.cols())
    throw std::runtime_error(path_ + ": tensor " + name + " is " + std::to_string(tensor.rows) + " x " +
                             std::to_string(tensor.columns) + ", must be " + std::to_string(out.rows()) + " x " +
                             std::to_string(out.cols()));
  const BlockSize block = block_size(tensor.type);
  const Index row_bytes = tensor.columns / block.elements * block.bytes;
  for (Index row = 0; row < tensor.rows; ++row)
    dequantize(tensor.type, tensor.data + row * row_bytes, tensor.columns, out.row(row).data());
}

}  // namespace llm
