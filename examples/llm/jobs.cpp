// jobs.cpp: whole jobs in parallel, rather than the matrix products of one: these would wait for each other some
// hundred times a chunk.
#include "jobs.hpp"

#include <algorithm>
#include <utility>

namespace llm {

Progress::Progress(std::FILE* stream, std::string name, std::string unit, Index steps)
    : stream_(stream), name_(std::move(name)), unit_(std::move(unit)), steps_(steps) {}

Progress::~Progress() {
  if (stream_ != nullptr) std::fputs("\r\x1b[K", stream_);
}

void Progress::step() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++done_;
  if (stream_ == nullptr) return;
  std::fprintf(stream_, "\r%s: %lld of %lld %s", name_.c_str(), (long long)done_, (long long)steps_, unit_.c_str());
  std::fflush(stream_);
}

int job_threads(Index count) {
  return int(std::max(Index(1), std::min(count, Index(std::thread::hardware_concurrency()))));
}

void run_jobs(const Model& model, Index count, const std::function<void(Decoder&, Index)>& job) {
  Workers workers(job_threads(count));
  std::atomic<Index> next{0};
  workers.run([&](int) {
    Workers alone(1);
    Decoder decoder(model, alone);
    for (Index i = next++; i < count; i = next++) job(decoder, i);
  });
}

}  // namespace llm
