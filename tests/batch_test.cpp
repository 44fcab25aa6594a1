// Attention of many sequences at once: the same as of each alone, whatever their lengths and formats, in any slices.
#include <numeric>

#include "support/cache.hpp"

namespace {

using namespace asymkv;
using namespace support;

constexpr CacheShape kTwoLayers{2, kHeads, kDim, kDim};
constexpr Index kQueryHeads = 2 * kHeads;

/// Sequences of some lengths, each with queries of its own and room for outputs.
class Sequences {
 public:
  Sequences(const char* policy, const std::vector<Index>& lengths, Index queries = 1) {
    caches_.reserve(lengths.size());
    for (Index length : lengths) add(policy, length, queries);
  }
  void add(const char* policy, Index length, Index queries) {
    const unsigned seed = unsigned(10 * caches_.size());
    caches_.push_back(make_cache(policy, {}, kTwoLayers));
    const Tokens tokens(length, seed, kTwoLayers);
    for (Index layer : {0, 1}) {
      append(caches_.back(), tokens, 0, length - 1, layer);
      append(caches_.back(), tokens, length - 1, 1, layer);
    }
    queries_.push_back(random_matrix(queries, kQueryHeads * kDim, seed + 5));
    outputs_.push_back(RowMatrix::Constant(queries, kQueryHeads * kDim, 7.0f));
  }

  std::vector<AsymKVCache>& caches() { return caches_; }
  std::vector<RowMatrix>& queries() { return queries_; }
  std::vector<RowMatrix>& outputs() { return outputs_; }

  std::vector<BatchEntry> entries() {
    std::vector<BatchEntry> entries;
    for (std::size_t i = 0; i < caches_.size(); ++i)
      entries.push_back({&caches_[i], tensor(queries_[i], kQueryHeads), tensor(outputs_[i], kQueryHeads)});
    return entries;
  }
  /// Each sequence's own attend.
  std::vector<RowMatrix> expected(Index layer) {
    std::vector<RowMatrix> all = outputs_;
    for (std::size_t i = 0; i < caches_.size(); ++i)
      EXPECT_TRUE(caches_[i].attend(layer, tensor(queries_[i], kQueryHeads), tensor(all[i], kQueryHeads)).ok());
    return all;
  }

 private:
  std::vector<AsymKVCache> caches_;
  std::vector<RowMatrix> queries_, outputs_;
};

Batch batch_of(const std::vector<BatchEntry>& entries) { return {entries.data(), Index(entries.size())}; }

Workspace workspace_of(Index threads) {
  Result<Workspace> workspace = Workspace::create(kTwoLayers, threads);
  EXPECT_TRUE(workspace.ok()) << workspace.status().message();
  return *workspace;
}

const auto backwards = [](Index count, const auto& task) {
  for (Index i = count - 1; i >= 0; --i) task(i);
};

TEST(Batch, OnOneThreadIsEachSequenceAlone) {
  for (const char* policy : {"k2v2", "balanced-1.7", "float", "k16v2"}) {
    Sequences sequences(policy, {1, 100, 1000, 129, 700, 37}, 1);
    sequences.add("k1v4", 300, 40);
    const std::vector<BatchEntry> entries = sequences.entries();
    for (Index layer : {0, 1}) {
      const std::vector<RowMatrix> expected = sequences.expected(layer);
      const Status status = attend_batch(layer, batch_of(entries), workspace_of(1));
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(sequences.outputs(), expected) << policy;
    }
  }
}

TEST(Batch, SlicesAreTheSameWithinRounding) {
  Sequences sequences("k4v4", {3000, 1, 100, 2000, 129, 31, 700}, 1);
  sequences.add("float", 900, 3);
  sequences.add("k4v8", 300, 200);
  const std::vector<RowMatrix> expected = sequences.expected(1);
  const std::vector<BatchEntry> entries = sequences.entries();
  for (Index threads : {2, 3, 5, 16, 200}) {
    for (RowMatrix& output : sequences.outputs()) output.setConstant(7.0f);
    const Status status = attend_batch(1, batch_of(entries), workspace_of(threads), backwards);
    ASSERT_TRUE(status.ok()) << status.message();
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_LT((sequences.outputs()[i] - expected[i]).norm(), 2e-3f * expected[i].norm()) << i << " of " << threads;
  }
}

TEST(Batch, WorkIsSplitEvenly) {
  const detail::Slices slices{1000, 7};
  Index first = 0;
  std::vector<Index> work(7, 0);
  for (const auto& [steps, weight] : {std::pair<Index, Index>(100, 3), {1, 130}, {0, 5}, {57, 10}}) {
    const detail::Placement placement{slices, first, steps, weight};
    Index done = 0;
    for (Index ith = 0; ith < 7; ++ith) {
      const detail::StepRange own = placement.own(ith);
      ASSERT_EQ(own.begin, done);  // no step is left out, or done twice
      for (Index step = own.begin; step < own.end; ++step) ASSERT_EQ(placement.owner(step), ith);
      work[std::size_t(ith)] += (own.end - own.begin) * weight;
      done = own.end;
    }
    ASSERT_EQ(done, steps);
    first = placement.end();
  }
  ASSERT_EQ(first, 1000);
  for (Index w : work) EXPECT_NEAR(double(w), 1000.0 / 7.0, 130.0);
}

TEST(Batch, ParametersAreEachEntrysOwn) {
  Sequences sequences("k2v2", {500, 400, 300});
  std::vector<BatchEntry> entries = sequences.entries();
  RowMatrix lse(1, kQueryHeads), expected_lse = lse;
  entries[0].params.window = 100;
  entries[1].params.softcap = 5.0f;
  entries[2].params.lse = tensor(lse.data(), 1, kQueryHeads, 1);
  std::vector<RowMatrix> expected = sequences.outputs();
  for (std::size_t i = 0; i < 3; ++i) {
    AttentionParams params = entries[i].params;
    if (i == 2) params.lse = tensor(expected_lse.data(), 1, kQueryHeads, 1);
    ASSERT_TRUE(sequences.caches()[i].attend(0, entries[i].queries, tensor(expected[i], kQueryHeads), params).ok());
  }
  ASSERT_TRUE(attend_batch(0, batch_of(entries), workspace_of(1)).ok());
  EXPECT_EQ(sequences.outputs(), expected);
  EXPECT_EQ(lse, expected_lse);
}

TEST(Batch, AnErrorNamesItsEntryAndNothingIsWritten) {
  Sequences sequences("k2v2", {500, 400, 300});
  const std::vector<RowMatrix> before = sequences.outputs();
  const Workspace workspace = workspace_of(2);
  const std::vector<BatchEntry> good = sequences.entries();
  const auto refuse = [&](auto spoil, ErrorCode code, const char* begin) {
    std::vector<BatchEntry> entries = good;
    spoil(entries);
    for (Index ith : {0, 1}) {
      expect_error(attend_batch_slice(0, batch_of(entries), {ith, 2}, workspace), code, begin);
      expect_error(merge_batch_slices(0, batch_of(entries), {ith, 2}, workspace), code, begin);
    }
  };
  using Entries = std::vector<BatchEntry>;
  sequences.queries()[2](0, 3) = NAN;
  refuse([](Entries&) {}, ErrorCode::non_finite, "entry 2: queries");
  sequences.queries()[2](0, 3) = 0.0f;
  refuse([](Entries& e) { e[1].cache = nullptr; }, ErrorCode::invalid_argument, "entry 1: cache");
  refuse([](Entries& e) { e[2].output.data = nullptr; }, ErrorCode::invalid_argument, "entry 2: output");
  refuse([](Entries& e) { e[0].params.window = -1; }, ErrorCode::invalid_argument, "entry 0: params: window");
  const AsymKVCache other = make_cache("k2v2", {}, {2, 2, 32, kDim});
  refuse([&](Entries& e) { e[1].cache = &other; }, ErrorCode::invalid_argument, "entry 1: workspace");
  const Batch batch = batch_of(good);
  expect_error(attend_batch(2, batch, workspace), ErrorCode::out_of_range, "entry 0: layer");
  expect_error(attend_batch(0, batch, Workspace()), ErrorCode::invalid_argument, "workspace: is empty");
  expect_error(attend_batch(0, {nullptr, 3}, workspace), ErrorCode::invalid_argument, "batch");
  expect_error(attend_batch(0, {good.data(), -1}, workspace), ErrorCode::invalid_argument, "batch");
  expect_error(attend_batch_slice(0, batch, {2, 2}, workspace), ErrorCode::invalid_argument, "slice");
  EXPECT_EQ(sequences.outputs(), before);
  EXPECT_TRUE(attend_batch(0, {}, workspace).ok());
}

}  // namespace
