// mapped_file.hpp: a file's bytes in memory, read-only and paged in on demand. Used by the GGUF loader.
#pragma once

#include <cstddef>
#include <string>

namespace llm {

/// Maps a whole file; throws std::runtime_error, with the reason, if that fails.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const unsigned char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const unsigned char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace llm
