// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Reading and checking environment variables.
#include "core/environment.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "core/check.h"

namespace ferry {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();
constexpr int kMaxPort = 65535;

[[noreturn]] void refuse_variable(const char* variable, std::string_view seen, std::string_view expected) {
  refuse("ferry::Environment::read", variable, seen.empty() ? "not set" : fmt::format("'{}'", seen), expected);
}

std::optional<std::string> text(const Environment::Lookup& lookup, const char* variable) {
  const char* value = lookup(variable);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::optional<std::int64_t> integer(const Environment::Lookup& lookup, const char* variable, std::int64_t least,
                                    std::int64_t most) {
  const std::optional<std::string> value = text(lookup, variable);
  if (!value) return std::nullopt;
  std::int64_t number = 0;
  const char* end = value->data() + value->size();
  const auto [stop, status] = std::from_chars(value->data(), end, number);
  if (status != std::errc() || stop != end || number < least || number > most) {
    refuse_variable(variable, *value, fmt::format("a whole number from {} to {}", least, most));
  }
  return number;
}

template <typename Integer>
std::optional<Integer> narrow(std::optional<std::int64_t> value) {
  if (!value) return std::nullopt;
  return static_cast<Integer>(*value);
}

/// RANK and WORLD_SIZE describe one thing: both, or neither.
void check_rank_and_size(const Environment& environment) {
  if (environment.rank && !environment.world_size) {
    refuse_variable("WORLD_SIZE", "", fmt::format("the number of ranks, because RANK is set ({})", *environment.rank));
  }
  if (environment.world_size && !environment.rank) {
    refuse_variable("RANK", "",
                    fmt::format("this process's rank, because WORLD_SIZE is set ({})", *environment.world_size));
  }
  if (environment.rank && *environment.rank >= *environment.world_size) {
    refuse_variable("RANK", std::to_string(*environment.rank),
                    fmt::format("less than WORLD_SIZE ({})", *environment.world_size));
  }
}

void check_log(std::string_view level) {
  constexpr std::array<std::string_view, 5> kLevels = {"off", "error", "warning", "info", "debug"};
  for (const std::string_view known : kLevels) {
    if (level == known) return;
  }
  refuse_variable("FERRY_LOG", level, "off, error, warning, info or debug");
}

}  // namespace

std::optional<std::uint16_t> Environment::meeting_port() const {
  if (ferry_port) return ferry_port;
  if (!master_port) return std::nullopt;
  if (*master_port == kMaxPort) {
    refuse_variable("MASTER_PORT", "65535", "less (Ferry listens on MASTER_PORT + 1), or FERRY_PORT");
  }
  return static_cast<std::uint16_t>(*master_port + 1);
}

Environment Environment::read(const Lookup& lookup) {
  Environment environment;
  environment.rank = narrow<int>(integer(lookup, "RANK", 0, kMaxInt));
  environment.world_size = narrow<int>(integer(lookup, "WORLD_SIZE", 1, kMaxInt));
  check_rank_and_size(environment);
  environment.local_rank = narrow<int>(integer(lookup, "LOCAL_RANK", 0, kMaxInt));
  environment.master_addr = text(lookup, "MASTER_ADDR").value_or(environment.master_addr);
  environment.master_port = narrow<std::uint16_t>(integer(lookup, "MASTER_PORT", 1, kMaxPort));
  environment.ferry_port = narrow<std::uint16_t>(integer(lookup, "FERRY_PORT", 1, kMaxPort));
  environment.token = text(lookup, "FERRY_TOKEN").value_or("");
  environment.node_size = narrow<int>(integer(lookup, "FERRY_NODE_SIZE", 1, kMaxInt));
  environment.log = text(lookup, "FERRY_LOG").value_or(environment.log);
  check_log(environment.log);
  environment.test_delay_ns = integer(lookup, "FERRY_TEST_DELAY_NS", 0, 1'000'000'000);
  return environment;
}

Environment Environment::read() {
  return read([](const char* variable) -> const char* { return std::getenv(variable); });
}

}  // namespace ferry
