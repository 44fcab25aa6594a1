// main.cpp: the program `context_parallel`: its options, what becomes of errors, and the count of what was sent.
#include <mpi.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <iostream>

#include "modes.hpp"
#include "sent_bytes.hpp"

namespace {

using namespace context_parallel;

struct CommandLine {
  Options options;
  std::string mode = "context";

  void add_to(CLI::App& app) {
    app.add_option("--mode", mode, "What is split over the ranks: one context, or sequences")
        ->capture_default_str()
        ->check(CLI::IsMember({"context", "sequences"}));
    app.add_option("--policy", options.policy, "Of the caches, e.g. float, k2v2, balanced-1.7")->capture_default_str();
    add_number(app, "--context", options.context, "Tokens of a sequence before the first step");
    add_number(app, "--steps", options.steps, "Tokens appended and attended one by one");
    add_number(app, "--sequences", options.sequences, "Of the mode `sequences`");
    add_number(app, "--layers", options.layers, "Layers of 8 kv heads of 128, read by 32 query heads");
    app.add_flag("!--no-check", options.check, "Leave out the comparison with one process, which needs all on rank 0");
    app.add_option("--kill-rank", options.kill_rank, "A rank that kills itself, to see how such a run ends");
    app.add_option("--kill-step", options.kill_step, "The step at whose start it does so")->capture_default_str();
  }

 private:
  static void add_number(CLI::App& app, const char* name, Index& number, const char* help) {
    app.add_option(name, number, help)->capture_default_str()->check(CLI::Range(Index(2), Index(1) << 31));
  }
};

/// Every rank reads the same words; rank 0 alone answers what is wrong about them. Returns CLI11's exit code.
int answer(const CLI::App& app, const CLI::ParseError& error, int rank) {
  return rank == 0 ? app.exit(error) : error.get_exit_code();
}

/// After MPI_Finalize. Whether Open MPI counted what the formula says.
bool compare_bytes(const SentBytes& sent, const Traffic& traffic, int rank) {
  const std::optional<Index> counted = sent.in_collectives(rank);
  if (!counted) return std::printf("rank %d: bytes sent: this MPI does not count them\n", rank), true;
  const Index expected = traffic.steps * traffic.bytes_a_step;
  std::printf("rank %d: bytes sent a step: %.10g counted, %lld by formula%s\n", rank,
              double(*counted) / double(traffic.steps), (long long)(traffic.bytes_a_step),
              *counted == expected ? "" : ": DIFFERENT");
  return *counted == expected;
}

}  // namespace

int main(int argc, char** argv) {
  const SentBytes sent;
  MPI_Init(&argc, &argv);
  const Ranks ranks = Ranks::all();
  Traffic traffic;
  try {
    CommandLine line;
    CLI::App app("A context, or sequences, split over the ranks of an MPI run", "context_parallel");
    line.add_to(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      const int code = answer(app, error, ranks.rank);
      MPI_Finalize();
      sent.in_collectives(ranks.rank);
      return code;
    }
    traffic = line.mode == "context" ? run_context(line.options, ranks) : run_sequences(line.options, ranks);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    std::fprintf(stderr, "context_parallel: rank %d: %s\n", ranks.rank, error.what());
    MPI_Abort(ranks.comm, 1);
  }
  if (ranks.rank == 0) std::printf("bytes a step: %s\n", traffic.formula);
  MPI_Finalize();
  return compare_bytes(sent, traffic, ranks.rank) ? 0 : 1;
}
