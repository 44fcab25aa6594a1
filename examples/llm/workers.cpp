#include "workers.hpp"

#include <stdexcept>
#include <utility>

namespace llm {
namespace {

asymkv::ThreadPool make_pool(int count) {
  auto pool = asymkv::ThreadPool::create(count);
  if (!pool.ok()) throw std::runtime_error(pool.status().message());
  return std::move(*pool);
}

}  // namespace

Workers::Workers(int count) : pool_(make_pool(count)) {}

}  // namespace llm
