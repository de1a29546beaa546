// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch and combine written with MPI, as well as a careful user would: buffers made beforehand, a rank's own rows never
// sent, rows received where they stay, combine sending straight from the experts' buffer.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <vector>

#include "bench_run.h"

namespace ferry::bench {

/// How ids and weights travel. Split: rows and their ids and weights in two exchanges, rows arrive in their final place.
/// Joined: in one exchange, which costs less latency and one more copy of the rows.
enum class Exchange { kSplit, kJoined };

class MpiJob : public Job {
 public:
  /// Throws std::invalid_argument for what this baseline does not do: other than rank_major, bf16, per_rank.
  MpiJob(const BenchCase& bench_case, Exchange exchange, MPI_Comm comm);

  void dispatch(const InputSet& input) override;
  Received received() override;
  void combine(const InputSet& input) override;
  const std::byte* combined() override { return out_.data(); }

 private:
  void count_rows(const InputSet& input);
  void place_rows();
  std::byte* destination_of(std::size_t peer, std::int64_t index);
  void pack(const InputSet& input);
  void pack_meta(const InputSet& input, std::int64_t token, std::byte* record, std::size_t peer) const;
  void exchange_split();
  void exchange_joined();
  void unpack_meta(const std::byte* records, std::size_t stride, std::int64_t first, std::int64_t count);
  void sum_token(std::int64_t token, const InputSet& input);

  const BenchCase case_;
  const Exchange exchange_;
  const MPI_Comm comm_;
  std::size_t rank_ = 0;
  std::size_t num_ranks_;
  std::size_t row_bytes_;
  std::size_t meta_bytes_;
  std::size_t record_bytes_;         // row and meta in the joined exchange
  std::vector<std::int32_t> owner_;  // of every expert
  std::vector<std::int32_t> first_expert_;

  // Of the last dispatch. Counts and offsets are in rows; `sent` counts leave this rank, `got` counts come here.
  std::vector<std::int32_t> position_;  // [T * R] index of a token among the rows for a rank, or -1
  std::vector<std::int32_t> sent_, got_, sent_offset_, got_offset_;
  std::vector<int> send_bytes_, send_at_, recv_bytes_, recv_at_;  // arguments of MPI_Alltoallv
  std::int64_t rows_ = 0;

  Buffer send_rows_, send_meta_, recv_rows_, recv_meta_, staging_, back_, out_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
};

}  // namespace ferry::bench
