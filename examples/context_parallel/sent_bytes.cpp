#include "sent_bytes.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace context_parallel {
namespace {

std::string file_name(long process) {
  return (std::filesystem::temp_directory_path() / ("context_parallel." + std::to_string(process))).string();
}

}  // namespace

Index all_reduce_bytes(int rank, int ranks, Index bytes) {
  int power = 1, doublings = 0;
  for (; 2 * power <= ranks; power *= 2) ++doublings;
  const int beyond = ranks - power;
  if (rank >= 2 * beyond) return doublings * bytes;
  return rank % 2 == 0 ? bytes : (doublings + 1) * bytes;
}

SentBytes::SentBytes() : process_(getpid()) {
  setenv("OMPI_MCA_pml_monitoring_enable", "2", 1);         // 2: collective calls apart from others
  setenv("OMPI_MCA_pml_monitoring_enable_output", "3", 1);  // 3: a file for each rank
  setenv("OMPI_MCA_pml_monitoring_filename", file_name(process_).c_str(), 1);
  setenv("OMPI_MCA_coll_tuned_use_dynamic_rules", "1", 0);
  setenv("OMPI_MCA_coll_tuned_allreduce_algorithm", "3", 0);  // 3: recursive doubling
}

std::optional<Index> SentBytes::in_collectives(int rank) const {
  const std::string name = file_name(process_) + "." + std::to_string(rank) + ".prof";
  std::ifstream file(name);
  if (!file) return {};
  Index sum = 0;
  for (std::string line; std::getline(file, line);) {  // I <from> <to> <bytes> bytes <messages> msgs sent
    long long bytes = 0;
    if (std::sscanf(line.c_str(), "I %*d %*d %lld bytes", &bytes) == 1) sum += bytes;
  }
  std::error_code ignored;
  std::filesystem::remove(name, ignored);
  return sum;
}

}  // namespace context_parallel
