// jobs.hpp: what measurements share: independent jobs over the cores, a line of progress, and feeding a text in chunks.
// Used by eval, passkey and asymmetry.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "decoder.hpp"

namespace llm {

/// A line that rewrites itself: "name: 3 of 16 units". Steps may come from any thread.
class Progress {
 public:
  /// Written to `stream`; to nowhere if that is null.
  Progress(std::FILE* stream, std::string name, std::string unit, Index steps);
  /// Wipes the line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step();

 private:
  std::FILE* const stream_;
  const std::string name_, unit_;
  const Index steps_;
  Index done_ = 0;
  std::mutex mutex_;
};

/// Threads that run_jobs starts for `count` jobs: one a core, but no more than jobs.
int job_threads(Index count);

/// Calls job(decoder, 0) .. job(decoder, count - 1), each once, the next one on the next free thread; a thread's
/// decoder is its own and runs on that thread alone. Returns when all are done; rethrows what a job throws.
void run_jobs(const Model& model, Index count, const std::function<void(Decoder&, Index)>& job);

}  // namespace llm
