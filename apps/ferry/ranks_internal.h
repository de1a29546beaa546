// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What ranks as processes and ranks as threads share: which failure to blame when several ranks fail.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <string>

#include "ranks.h"

namespace ferry::app {

/// How much a failure explains: a rank that died caused the timeouts of the others, not the reverse.
enum class Blame : std::uint8_t { kDeath, kOwnError, kVictim };

struct BlamedFailure {
  RunFailure failure;
  Blame blame = Blame::kOwnError;
};

/// Keeps the failure that explains most; the first one among equals.
inline void keep_worse(std::optional<BlamedFailure>& kept, BlamedFailure candidate) {
  if (!kept || candidate.blame < kept->blame) kept = std::move(candidate);
}

/// The failure that an exception stands for.
BlamedFailure describe_exception(int rank, std::exception_ptr exception);

/// After the first failure the others get this long to say what they saw.
constexpr std::chrono::milliseconds kGrace{1000};

std::optional<RunFailure> run_as_processes(const Launch& launch, const std::function<void(RankPort&)>& body);
std::optional<RunFailure> run_as_threads(const Launch& launch, const std::function<void(RankPort&)>& body);

}  // namespace ferry::app
