// ranks.hpp: the ranks of a run, and what they tell each other beside the work that is measured. Used by both modes.
#pragma once

#include <mpi.h>
#include <signal.h>

#include <vector>

#include "options.hpp"

namespace context_parallel {

struct Ranks {
  MPI_Comm comm = MPI_COMM_WORLD;
  int rank = 0, count = 1;

  static Ranks all() {
    Ranks ranks;
    MPI_Comm_rank(ranks.comm, &ranks.rank);
    MPI_Comm_size(ranks.comm, &ranks.count);
    return ranks;
  }

  /// On rank 0 what every rank hands over, in their order; elsewhere nothing. Not a collective call, so that it is not
  /// counted with those of the steps.
  std::vector<std::vector<float>> collect(const std::vector<float>& own) const { return collect(own, MPI_FLOAT); }
  std::vector<std::vector<double>> collect(const std::vector<double>& own) const { return collect(own, MPI_DOUBLE); }

  /// What the option --kill-rank asks for: this process ends as if the system had killed it.
  void kill_if_asked(const Options& options, Index step) const {
    if (rank == options.kill_rank && step == options.kill_step) raise(SIGKILL);
  }

 private:
  template <class T>
  std::vector<std::vector<T>> collect(const std::vector<T>& own, MPI_Datatype type) const {
    if (rank != 0) {
      MPI_Send(own.data(), int(own.size()), type, 0, 0, comm);
      return {};
    }
    std::vector<std::vector<T>> all{own};
    for (int from = 1; from < count; ++from) {
      MPI_Status status;
      MPI_Probe(from, 0, comm, &status);
      int numbers = 0;
      MPI_Get_count(&status, type, &numbers);
      all.emplace_back(std::size_t(numbers));
      MPI_Recv(all.back().data(), numbers, type, from, 0, comm, MPI_STATUS_IGNORE);
    }
    return all;
  }
};

}  // namespace context_parallel
