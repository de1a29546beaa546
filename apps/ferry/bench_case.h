// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What `ferry bench` and the MPI baseline measure: one case, its routing and its input. Knows nothing of Ferry's library, so
// that both sides do the same job on the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ferry::bench {

/// One configuration. Words are those of the JSON lines.
struct BenchCase {
  std::string backend = "host";
  std::string mode = "throughput";     ///< throughput | latency
  std::string layout = "rank_major";   ///< rank_major | expert_major | expert_padded
  std::string payload = "bf16";        ///< bf16 | fp16 | fp32 | fp8_f32 | fp8_ue8m0 | bytes
  std::string codec = "none";          ///< none | fp8_f32 | fp8_ue8m0
  std::string reduction = "per_rank";  ///< flat | per_rank | per_node
  std::string routing = "uniform";     ///< uniform | grouped | zipf
  std::string ranks_as = "processes";  ///< processes | threads
  std::string output = "window";       ///< window | owned
  std::int64_t tokens = 1024;
  std::int64_t hidden = 7168;
  std::int64_t expert_capacity = 0;  ///< expert_padded; 0 = ranks x tokens
  int top_k = 8;
  int experts = 256;
  int ranks = 2;
  int nodes = 1;
  std::string network = "auto";  ///< between nodes
  int iterations = 0;            ///< 0: 20 in throughput mode, 200 in latency mode
  int warmup = 0;                ///< 0: 4 and 20
  int num_sets = 0;              ///< input sets to rotate among; 0: enough to exceed the last-level cache
  std::uint64_t seed = 1;
  double deadline_s = 60;  ///< of every wait
};

/// Fills in the zeros above and throws std::invalid_argument for what makes no sense.
void complete(BenchCase& bench_case);

/// Bytes per token of each block that the caller hands over.
std::vector<std::size_t> block_bytes(const BenchCase& bench_case);
/// Bytes per token that have to cross a link in dispatch: the coded row and its scales, without ids and weights.
std::size_t wire_row_bytes(const BenchCase& bench_case);
/// Word for the element type of combine: that of the payload where it can be summed, else bf16.
std::string combine_dtype(const BenchCase& bench_case);
std::size_t combine_row_bytes(const BenchCase& bench_case);
std::int64_t padded_capacity(const BenchCase& bench_case);

/// Contiguous placement: the first ranks own one expert more each if the division leaves a rest.
int owner_of(const BenchCase& bench_case, int expert);
int first_expert(const BenchCase& bench_case, int rank);
/// Nodes as even as possible, the first ones take the rest.
int node_of(const BenchCase& bench_case, int rank);

/// What every rank sends in one input set: ids and weights [rank][T * K].
struct Routing {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<std::vector<float>> weights;
};
Routing make_routing(const BenchCase& bench_case, int set);

/// Where a received row comes from. `choice` is -1 in rank_major.
struct RowSource {
  int rank = 0;
  std::int64_t token = 0;
  int choice = -1;
  std::int64_t row = 0;  ///< its row in the result
};
/// The rows of a rank in the documented order.
std::vector<RowSource> expected_rows(const BenchCase& bench_case, const Routing& routing, int rank);

/// Necessary bytes of the busiest rank: the larger of what it has to send to and get from others.
struct Necessary {
  std::int64_t dispatch_bytes = 0;
  std::int64_t combine_bytes = 0;
};
Necessary necessary_bytes(const BenchCase& bench_case, const Routing& routing);

/// Private memory, zero, mapped when touched.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Random bytes that are valid numbers of a type; rows are cut out of them.
class RowPool {
 public:
  RowPool(const std::string& dtype, std::size_t row_bytes, std::uint64_t seed);
  /// The row that belongs to a key: always the same, and different for (nearly) all keys.
  const std::byte* row(std::uint64_t key) const;
  std::size_t row_bytes() const noexcept { return row_bytes_; }

 private:
  std::size_t element_bytes_;
  std::size_t row_bytes_;
  std::vector<std::byte> bytes_;
};

/// One pool per payload block, and one for the rows that combine brings back.
struct RowPools {
  std::vector<RowPool> blocks;
  RowPool results;
};
RowPools make_pools(const BenchCase& bench_case);
/// `which`: block of the payload.
std::uint64_t input_key(int set, int rank, std::int64_t token, int which);
/// `part`: the choice (expert layouts) or the rank that owns the row (rank_major).
std::uint64_t result_key(int set, int rank, std::int64_t token, int part);

/// What one rank hands to one dispatch and the combine after it.
struct InputSet {
  int index = 0;
  std::vector<Buffer> blocks;  ///< [T, bytes] each
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  Buffer results;  ///< what the experts made of the rows: the input of combine
  std::int64_t result_rows = 0;
};
InputSet make_input(const BenchCase& bench_case, const RowPools& pools, const Routing& routing, int set, int rank);

}  // namespace ferry::bench
