// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The one place where environment variables are read. Everything else gets values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace ferry {

/// All variables that Ferry knows. Unset and empty mean the same. Fields without a variable of their own are derived.
struct Environment {
  // Set by torchrun, python -m ferry.launch and the like. RANK and WORLD_SIZE come together or not at all.
  std::optional<int> rank;                   ///< RANK: this process's rank, 0 <= RANK < WORLD_SIZE
  std::optional<int> world_size;             ///< WORLD_SIZE: number of ranks, at least 1
  std::optional<int> local_rank;             ///< LOCAL_RANK: number of this process on its machine
  std::string master_addr = "127.0.0.1";     ///< MASTER_ADDR: where rank 0 listens; name, IPv4 or IPv6
  std::optional<std::uint16_t> master_port;  ///< MASTER_PORT: belongs to PyTorch; Ferry only counts on from it

  // Ferry's own.
  std::optional<std::uint16_t> ferry_port;    ///< FERRY_PORT: where Ferry's rank 0 listens, 1 .. 65535
  std::string token;                          ///< FERRY_TOKEN: shared secret of the job
  std::optional<int> node_size;               ///< FERRY_NODE_SIZE: ranks per node, at least 1; makes pretend nodes
  std::string log = "warning";                ///< FERRY_LOG: off, error, warning, info or debug
  std::optional<std::int64_t> test_delay_ns;  ///< FERRY_TEST_DELAY_NS: random delay up to this before every signal

  /// Where Ferry's rank 0 listens: FERRY_PORT, else MASTER_PORT + 1; empty if neither is set.
  std::optional<std::uint16_t> meeting_port() const;

  /// Value of a variable, null if unset.
  using Lookup = std::function<const char*(const char* variable)>;

  /// Reads the process's environment. Throws Error(invalid_argument) that names the variable, what was seen and expected.
  static Environment read();
  /// The same from any source of values; for tests.
  static Environment read(const Lookup& lookup);
};

}  // namespace ferry
