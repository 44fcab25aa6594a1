// state_fuzz.cpp: libFuzzer's entry to state_fuzz.hpp. `cmake --workflow --preset fuzz` builds it and fuzzes for a
// minute.
#include "fuzz/state_fuzz.hpp"

#include <cstdio>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const char* const fault = state_fuzz::run(data, size);
  if (fault == nullptr) return 0;
  std::fprintf(stderr, "%s\n", fault);
  std::abort();
}
