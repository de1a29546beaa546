// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The program that measures the MPI baseline: started by mpirun, takes the options of `ferry bench`, writes the same lines.
#include <mpi.h>
#include <unistd.h>

#include <optional>
#include <string>

#include <fmt/format.h>

#include "mpi_job.h"

namespace ferry::bench {
namespace {

struct Settings {
  BenchCase bench_case;
  std::vector<std::int64_t> tokens{1024};
  std::string exchange = "auto";
  std::string json_path;
};

void add_options(app::Options command, Settings& settings) {
  add_case_options(command, settings.bench_case, settings.tokens);
  command.value("--network", settings.bench_case.network, "what the results shall say of the links between nodes");
  command.word("--exchange", settings.exchange,
               app::Words<std::string>{{"split", "split"}, {"joined", "joined"}, {"auto", "auto"}},
               "auto: joined in latency mode, else split");
  command.json_file(settings.json_path, "append the measurements to this file");
}

Exchange choose_exchange(const Settings& settings) {
  if (settings.exchange == "auto") return settings.bench_case.mode == "latency" ? Exchange::kJoined : Exchange::kSplit;
  return settings.exchange == "joined" ? Exchange::kJoined : Exchange::kSplit;
}

Arena share_arena(const BenchCase& bench_case, int rank) {
  const ArenaShape shape = arena_shape(bench_case);
  std::optional<Arena> own;
  int where[2] = {0, 0};
  if (rank == 0) {
    own.emplace(Arena::create(shape));
    where[0] = static_cast<int>(::getpid());
    where[1] = own->fd();
  }
  MPI_Bcast(where, 2, MPI_INT, 0, MPI_COMM_WORLD);
  return rank == 0 ? std::move(*own) : Arena::attach(where[0], where[1], shape);
}

void measure(Settings& settings, std::int64_t tokens, int rank) {
  BenchCase bench_case = settings.bench_case;
  bench_case.tokens = tokens;
  bench_case.backend = "mpi";
  bench_case.output = "owned";
  complete(bench_case);
  // Rank 0 looked at the free memory; all must rotate among as many sets.
  MPI_Bcast(&bench_case.num_sets, 1, MPI_INT, 0, MPI_COMM_WORLD);
  Arena arena = share_arena(bench_case, rank);
  try {
    MpiJob job(bench_case, choose_exchange(settings), MPI_COMM_WORLD);
    run_rank(bench_case, rank, arena, job);
  } catch (const std::exception& error) {
    arena.fail(rank, error.what());
    throw;
  }
  if (rank != 0) return;
  const std::vector<nlohmann::ordered_json> lines = summarise(bench_case, find_origin(), arena);
  for (const nlohmann::ordered_json& line : lines) fmt::print("{}\n", table_line(line));
  std::fflush(stdout);
  if (!settings.json_path.empty()) append_json(settings.json_path, lines);
}

int run(int argc, char** argv) {
  int rank = 0;
  Settings settings;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &settings.bench_case.ranks);
  app::Program program("The job of Ferry written with MPI");
  add_options(program.options(), settings);
  if (const auto ended = rank == 0 ? program.parse(argc, argv) : program.parse_quietly(argc, argv)) return *ended;
  if (rank == 0) fmt::print("{}\n", table_header());
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (settings.bench_case.ranks != size) throw std::invalid_argument("mpi baseline: --ranks is what mpirun -np says");
  for (const std::int64_t tokens : settings.tokens) measure(settings, tokens, rank);
  return 0;
}

}  // namespace
}  // namespace ferry::bench

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  try {
    const int code = ferry::bench::run(argc, argv);
    MPI_Finalize();
    return code;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return 1;
}
