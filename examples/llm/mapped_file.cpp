// mapped_file.cpp: mapping by POSIX mmap.
#include "mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace llm {
namespace {

[[noreturn]] void fail(const std::string& path, const char* reason) { throw std::runtime_error(path + ": " + reason); }

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(path, std::strerror(errno));
  struct stat about = {};
  const bool regular = fstat(file, &about) == 0 && S_ISREG(about.st_mode);
  void* memory = MAP_FAILED;
  int error = 0;
  if (regular && about.st_size > 0) {
    memory = mmap(nullptr, std::size_t(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    error = errno;
  }
  close(file);  // the mapping outlives the descriptor
  if (!regular) fail(path, "is not a regular file");
  if (about.st_size == 0) fail(path, "is empty");
  if (memory == MAP_FAILED) fail(path, std::strerror(error));
  data_ = static_cast<const unsigned char*>(memory);
  size_ = std::size_t(about.st_size);
}

MappedFile::~MappedFile() { munmap(const_cast<unsigned char*>(data_), size_); }

}  // namespace llm
