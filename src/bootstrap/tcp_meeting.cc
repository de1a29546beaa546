// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The ways into a TCP meeting: by arguments, and by the variables that launchers set.
#include <fmt/format.h>

#include <utility>

#include "bootstrap/failure.h"
#include "bootstrap/frames.h"
#include "bootstrap/tcp_guest.h"
#include "bootstrap/tcp_host.h"
#include "core/check.h"
#include "core/environment.h"
#include "ferry/meeting.h"

namespace ferry {
namespace {

void check(const TcpMeeting& where) {
  const char* const function = "ferry::meet_over_tcp";
  if (where.size < 1 || where.size > bootstrap::kMaxRanks) {
    refuse(function, "size", fmt::format("{}", where.size), fmt::format("1 to {}", bootstrap::kMaxRanks));
  }
  if (where.rank < 0 || where.rank >= where.size) {
    refuse(function, "rank", fmt::format("{}", where.rank), fmt::format("0 to {}", where.size - 1));
  }
  if (where.timeout <= std::chrono::nanoseconds(0)) {
    refuse(function, "timeout", fmt::format("{} ns", where.timeout.count()), "more than 0");
  }
  if (where.token.size() > bootstrap::kMaxTokenBytes) {
    refuse(function, "token", fmt::format("{} bytes long", where.token.size()),
           fmt::format("at most {}", bootstrap::kMaxTokenBytes));
  }
  if (where.size == 1) return;
  if (where.port == 0) refuse(function, "port", "0", "1 to 65535");
  if (where.address.empty()) refuse(function, "address", "empty", "a name, an IPv4 or an IPv6 address");
}

}  // namespace

std::unique_ptr<Meeting> meet_over_tcp(const TcpMeeting& where) {
  check(where);
  if (where.size == 1) return std::move(meet_in_process(1).front());
  if (where.rank == 0) return std::make_unique<bootstrap::TcpHost>(where);
  return std::make_unique<bootstrap::TcpGuest>(where);
}

std::unique_ptr<Meeting> meet_from_environment() {
  const Environment environment = Environment::read();
  if (!environment.rank || !environment.world_size) return std::move(meet_in_process(1).front());
  const std::optional<std::uint16_t> port = environment.meeting_port();
  if (!port && *environment.world_size > 1) {
    refuse("ferry::meet_from_environment", "FERRY_PORT", "not set, nor is MASTER_PORT",
           "a port at which rank 0 can listen");
  }
  return meet_over_tcp({.rank = *environment.rank,
                        .size = *environment.world_size,
                        .address = environment.master_addr,
                        .port = port.value_or(0),
                        .token = environment.token});
}

}  // namespace ferry
