// gguf_writer.hpp: writes the tiny models that the decoder's tests run on. Shares nothing with the reader.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <random>
#include <string>
#include <vector>

namespace support {

/// Writes GGUF by its specification.
class GgufWriter {
 public:
  template <class T>
  void put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_string(const std::string& text) {
    put(std::uint64_t(text.size()));
    bytes_ += text;
  }
  void number(const std::string& key, std::uint32_t value) {
    put_string(key);
    put(std::uint32_t(4));
    put(value);
    ++values;
  }
  void real(const std::string& key, float value) {
    put_string(key);
    put(std::uint32_t(6));
    put(value);
    ++values;
  }
  void text(const std::string& key, const std::string& value) {
    put_string(key);
    put(std::uint32_t(8));
    put_string(value);
    ++values;
  }
  void strings(const std::string& key, const std::vector<std::string>& list) {
    put_string(key);
    put(std::uint32_t(9));
    put(std::uint32_t(8));
    put(std::uint64_t(list.size()));
    for (const std::string& s : list) put_string(s);
    ++values;
  }
  void integers(const std::string& key, const std::vector<std::int32_t>& list) {
    put_string(key);
    put(std::uint32_t(9));
    put(std::uint32_t(5));
    put(std::uint64_t(list.size()));
    for (std::int32_t i : list) put(i);
    ++values;
  }
  void reals(const std::string& key, const std::vector<float>& list) {
    put_string(key);
    put(std::uint32_t(9));
    put(std::uint32_t(6));
    put(std::uint64_t(list.size()));
    for (float x : list) put(x);
    ++values;
  }
  void flag(const std::string& key, bool value) {
    put_string(key);
    put(std::uint32_t(7));
    put(std::uint8_t(value));
    ++values;
  }
  /// Data goes behind all infos; `type` as in the specification.
  void tensor(const std::string& name, std::uint64_t rows, std::uint64_t columns, std::uint32_t type,
              const std::string& data) {
    tensors.push_back({name, rows, columns, type, data});
  }
  std::string finish() {
    std::string body = std::move(bytes_);
    bytes_ = "GGUF";
    put(std::uint32_t(3));
    put(std::uint64_t(tensors.size()));
    put(values);
    bytes_ += body;
    std::uint64_t offset = 0;
    for (const Tensor& t : tensors) {
      put_string(t.name);
      put(std::uint32_t(2));
      put(t.columns);
      put(t.rows);
      put(t.type);
      put(offset);
      offset += (t.data.size() + 31) / 32 * 32;
    }
    bytes_.resize((bytes_.size() + 31) / 32 * 32);
    for (const Tensor& t : tensors) {
      bytes_ += t.data;
      bytes_.resize((bytes_.size() + 31) / 32 * 32);
    }
    return bytes_;
  }

 private:
  struct Tensor {
    std::string name;
    std::uint64_t rows, columns;
    std::uint32_t type;
    std::string data;
  };
  std::string bytes_;
  std::uint64_t values = 0;
  std::vector<Tensor> tensors;
};

/// Normal numbers, as the bytes of an F32 tensor.
inline std::string floats(std::size_t count, unsigned seed, float scale, float mean = 0.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(mean, scale);
  std::string data;
  for (std::size_t i = 0; i < count; ++i) {
    const float x = normal(generator);
    data.append(reinterpret_cast<const char*>(&x), 4);
  }
  return data;
}

/// Writes a file of this process's own; returns its path.
inline std::string save(const std::string& bytes, const char* name) {
  const std::string path = ::testing::TempDir() + "asymkv_" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace support
