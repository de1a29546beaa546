// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch and combine with MPI_Alltoall and MPI_Alltoallv: see mpi_job.h.
#include "mpi_job.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "core/clones.h"

namespace ferry::bench {
namespace {

constexpr std::size_t kLanes = 512;  // bf16 elements summed in the first-level cache before they are written

FERRY_CLONES void add_lanes(float* __restrict sums, const std::uint16_t* __restrict row) {
  for (std::size_t i = 0; i < kLanes; ++i) sums[i] += std::bit_cast<float>(static_cast<std::uint32_t>(row[i]) << 16);
}

FERRY_CLONES void store_lanes(std::uint16_t* __restrict out, const float* __restrict sums) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(sums[i]);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const std::uint32_t quiet = (bits >> 16) | 0x40;
    out[i] = static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

/// The elements that do not fill kLanes.
void sum_rest(std::uint16_t* out, const std::uint16_t* const* rows, std::size_t num_rows, std::size_t first,
              std::size_t end) {
  alignas(64) std::array<float, kLanes> sums{};
  alignas(64) std::array<std::uint16_t, kLanes> lanes{};
  for (std::size_t r = 0; r < num_rows; ++r) {
    std::memcpy(lanes.data(), rows[r] + first, (end - first) * 2);
    add_lanes(sums.data(), lanes.data());
  }
  store_lanes(lanes.data(), sums.data());
  std::memcpy(out + first, lanes.data(), (end - first) * 2);
}

/// Sums rows in float32 in the order given and rounds once.
void sum_rows(std::uint16_t* out, const std::uint16_t* const* rows, std::size_t num_rows, std::size_t hidden) {
  std::size_t first = 0;
  for (; first + kLanes <= hidden; first += kLanes) {
    alignas(64) std::array<float, kLanes> sums{};
    for (std::size_t r = 0; r < num_rows; ++r) add_lanes(sums.data(), rows[r] + first);
    store_lanes(out + first, sums.data());
  }
  if (first < hidden) sum_rest(out, rows, num_rows, first, hidden);
}

void check(int code, const char* function) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(function) + ": " + text);
}

int to_int(std::size_t value) {
  if (value > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw std::invalid_argument("mpi baseline: more than 2^31 - 1 bytes in one exchange; use fewer tokens");
  }
  return static_cast<int>(value);
}

/// Offsets in front of each count; returns the sum.
std::int64_t scan(const std::vector<std::int32_t>& counts, std::vector<std::int32_t>& offsets) {
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    offsets[i] = sum;
    sum += counts[i];
  }
  return sum;
}

}  // namespace

MpiJob::MpiJob(const BenchCase& bench_case, Exchange exchange, MPI_Comm comm)
    : case_(bench_case), exchange_(exchange), comm_(comm), num_ranks_(static_cast<std::size_t>(bench_case.ranks)) {
  if (case_.layout != "rank_major" || case_.payload != "bf16" || case_.codec != "none" ||
      case_.reduction != "per_rank") {
    throw std::invalid_argument(
        "mpi baseline: does layout rank_major, payload bf16, codec none and reduction per_rank only");
  }
  if (wire_row_bytes(case_) % 16 != 0) {
    throw std::invalid_argument("mpi baseline: rows must be a multiple of 16 bytes; choose another --hidden");
  }
  int rank = 0;
  check(MPI_Comm_rank(comm_, &rank), "MPI_Comm_rank");
  rank_ = static_cast<std::size_t>(rank);
  row_bytes_ = wire_row_bytes(case_);
  meta_bytes_ = static_cast<std::size_t>(case_.top_k) * (sizeof(std::int32_t) + sizeof(float));
  record_bytes_ = (row_bytes_ + meta_bytes_ + 15) / 16 * 16;
  for (int expert = 0; expert < case_.experts; ++expert) owner_.push_back(owner_of(case_, expert));
  for (int r = 0; r < case_.ranks; ++r) first_expert_.push_back(first_expert(case_, r));

  const auto tokens = static_cast<std::size_t>(case_.tokens);
  const std::size_t most_rows = tokens * num_ranks_;  // sent and received
  position_.resize(most_rows);
  for (auto* counts : {&sent_, &got_, &sent_offset_, &got_offset_}) counts->resize(num_ranks_);
  for (auto* bytes : {&send_bytes_, &send_at_, &recv_bytes_, &recv_at_}) bytes->resize(num_ranks_);
  ids_.resize(most_rows * static_cast<std::size_t>(case_.top_k));
  weights_.resize(ids_.size());
  const bool joined = exchange_ == Exchange::kJoined;
  send_rows_ = Buffer(most_rows * (joined ? record_bytes_ : row_bytes_));
  send_meta_ = Buffer(most_rows * meta_bytes_);
  recv_rows_ = Buffer(most_rows * row_bytes_);
  recv_meta_ = Buffer(most_rows * meta_bytes_);
  if (joined) staging_ = Buffer(most_rows * record_bytes_);
  back_ = Buffer(most_rows * row_bytes_);
  out_ = Buffer(tokens * row_bytes_);
}

void MpiJob::count_rows(const InputSet& input) {
  std::fill(sent_.begin(), sent_.end(), 0);
  std::fill(position_.begin(), position_.end(), -1);
  const auto top_k = static_cast<std::size_t>(case_.top_k);
  for (std::size_t token = 0; token < static_cast<std::size_t>(case_.tokens); ++token) {
    std::int32_t* const position = &position_[token * num_ranks_];
    for (std::size_t k = 0; k < top_k; ++k) {
      const auto peer = static_cast<std::size_t>(owner_[static_cast<std::size_t>(input.ids[token * top_k + k])]);
      if (position[peer] < 0) position[peer] = sent_[peer]++;
    }
  }
}

void MpiJob::place_rows() {
  check(MPI_Alltoall(sent_.data(), 1, MPI_INT32_T, got_.data(), 1, MPI_INT32_T, comm_), "MPI_Alltoall");
  scan(sent_, sent_offset_);
  rows_ = scan(got_, got_offset_);
}

/// Own rows go straight to where they stay.
std::byte* MpiJob::destination_of(std::size_t peer, std::int64_t index) {
  if (peer == rank_) return recv_rows_.data() + static_cast<std::size_t>(got_offset_[rank_] + index) * row_bytes_;
  const std::size_t stride = exchange_ == Exchange::kJoined ? record_bytes_ : row_bytes_;
  return send_rows_.data() + static_cast<std::size_t>(sent_offset_[peer] + index) * stride;
}

void MpiJob::pack_meta(const InputSet& input, std::int64_t token, std::byte* record, std::size_t peer) const {
  const auto top_k = static_cast<std::size_t>(case_.top_k);
  const std::int32_t* const ids = &input.ids[static_cast<std::size_t>(token) * top_k];
  const float* const weights = &input.weights[static_cast<std::size_t>(token) * top_k];
  auto* const out_ids = reinterpret_cast<std::int32_t*>(record);
  auto* const out_weights = reinterpret_cast<float*>(record + top_k * sizeof(std::int32_t));
  for (std::size_t k = 0; k < top_k; ++k) {
    const bool there = owner_[static_cast<std::size_t>(ids[k])] == static_cast<std::int32_t>(peer);
    out_ids[k] = there ? ids[k] - first_expert_[peer] : -1;
    out_weights[k] = there ? weights[k] : 0.0F;
  }
}

void MpiJob::pack(const InputSet& input) {
  const bool joined = exchange_ == Exchange::kJoined;
  for (std::int64_t token = 0; token < case_.tokens; ++token) {
    const std::byte* const row = input.blocks[0].data() + static_cast<std::size_t>(token) * row_bytes_;
    for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
      const std::int32_t index = position_[static_cast<std::size_t>(token) * num_ranks_ + peer];
      if (index < 0) continue;
      std::byte* const to = destination_of(peer, index);
      std::memcpy(to, row, row_bytes_);
      std::byte* meta = send_meta_.data() + static_cast<std::size_t>(sent_offset_[peer] + index) * meta_bytes_;
      if (peer == rank_) {
        meta = recv_meta_.data() + static_cast<std::size_t>(got_offset_[rank_] + index) * meta_bytes_;
      } else if (joined) {
        meta = to + row_bytes_;
      }
      pack_meta(input, token, meta, peer);
    }
  }
}

void MpiJob::unpack_meta(const std::byte* records, std::size_t stride, std::int64_t first, std::int64_t count) {
  const auto top_k = static_cast<std::size_t>(case_.top_k);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::byte* const record = records + static_cast<std::size_t>(i) * stride;
    const std::size_t row = static_cast<std::size_t>(first + i) * top_k;
    std::memcpy(&ids_[row], record, top_k * sizeof(std::int32_t));
    std::memcpy(&weights_[row], record + top_k * sizeof(std::int32_t), top_k * sizeof(float));
  }
}

void MpiJob::exchange_split() {
  const auto exchange = [&](std::size_t bytes, const Buffer& from, const Buffer& to) {
    for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
      const bool self = peer == rank_;
      send_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(sent_[peer]) * bytes);
      recv_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(got_[peer]) * bytes);
      send_at_[peer] = to_int(static_cast<std::size_t>(sent_offset_[peer]) * bytes);
      recv_at_[peer] = to_int(static_cast<std::size_t>(got_offset_[peer]) * bytes);
    }
    check(MPI_Alltoallv(from.data(), send_bytes_.data(), send_at_.data(), MPI_BYTE, to.data(), recv_bytes_.data(),
                        recv_at_.data(), MPI_BYTE, comm_),
          "MPI_Alltoallv");
  };
  exchange(meta_bytes_, send_meta_, recv_meta_);
  exchange(row_bytes_, send_rows_, recv_rows_);
  unpack_meta(recv_meta_.data(), meta_bytes_, 0, rows_);
}

void MpiJob::exchange_joined() {
  for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
    const bool self = peer == rank_;
    send_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(sent_[peer]) * record_bytes_);
    recv_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(got_[peer]) * record_bytes_);
    send_at_[peer] = to_int(static_cast<std::size_t>(sent_offset_[peer]) * record_bytes_);
    recv_at_[peer] = to_int(static_cast<std::size_t>(got_offset_[peer]) * record_bytes_);
  }
  check(MPI_Alltoallv(send_rows_.data(), send_bytes_.data(), send_at_.data(), MPI_BYTE, staging_.data(),
                      recv_bytes_.data(), recv_at_.data(), MPI_BYTE, comm_),
        "MPI_Alltoallv");
  for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
    const auto first = static_cast<std::size_t>(got_offset_[peer]);
    const auto count = static_cast<std::size_t>(got_[peer]);
    if (peer == rank_) {
      unpack_meta(recv_meta_.data() + first * meta_bytes_, meta_bytes_, got_offset_[peer], got_[peer]);
      continue;
    }
    const std::byte* const records = staging_.data() + first * record_bytes_;
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(recv_rows_.data() + (first + i) * row_bytes_, records + i * record_bytes_, row_bytes_);
    }
    unpack_meta(records + row_bytes_, record_bytes_, got_offset_[peer], got_[peer]);
  }
}

void MpiJob::dispatch(const InputSet& input) {
  count_rows(input);
  place_rows();
  pack(input);
  if (exchange_ == Exchange::kJoined) {
    exchange_joined();
  } else {
    exchange_split();
  }
}

Received MpiJob::received() {
  Received result;
  result.blocks = {{.data = recv_rows_.data(), .stride_bytes = row_bytes_}};
  result.rows = rows_;
  result.ids = ids_.data();
  result.weights = weights_.data();
  return result;
}

void MpiJob::sum_token(std::int64_t token, const InputSet& input) {
  std::array<const std::uint16_t*, 256> rows;
  std::size_t num_rows = 0;
  for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
    const std::int32_t index = position_[static_cast<std::size_t>(token) * num_ranks_ + peer];
    if (index < 0) continue;
    const std::byte* const from =
        peer == rank_ ? input.results.data() + static_cast<std::size_t>(got_offset_[rank_] + index) * row_bytes_
                      : back_.data() + static_cast<std::size_t>(sent_offset_[peer] + index) * row_bytes_;
    rows[num_rows++] = reinterpret_cast<const std::uint16_t*>(from);
  }
  auto* const out = reinterpret_cast<std::uint16_t*>(out_.data() + static_cast<std::size_t>(token) * row_bytes_);
  sum_rows(out, rows.data(), num_rows, static_cast<std::size_t>(case_.hidden));
}

void MpiJob::combine(const InputSet& input) {
  for (std::size_t peer = 0; peer < num_ranks_; ++peer) {
    const bool self = peer == rank_;
    send_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(got_[peer]) * row_bytes_);
    recv_bytes_[peer] = self ? 0 : to_int(static_cast<std::size_t>(sent_[peer]) * row_bytes_);
    send_at_[peer] = to_int(static_cast<std::size_t>(got_offset_[peer]) * row_bytes_);
    recv_at_[peer] = to_int(static_cast<std::size_t>(sent_offset_[peer]) * row_bytes_);
  }
  check(MPI_Alltoallv(input.results.data(), send_bytes_.data(), send_at_.data(), MPI_BYTE, back_.data(),
                      recv_bytes_.data(), recv_at_.data(), MPI_BYTE, comm_),
        "MPI_Alltoallv");
  for (std::int64_t token = 0; token < case_.tokens; ++token) sum_token(token, input);
}

}  // namespace ferry::bench
