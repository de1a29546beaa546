// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The one exception type of the library. Whatever goes wrong says where, who and what was seen.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace ferry {

enum class ErrorCode : std::uint8_t {
  kInvalidArgument,  ///< misuse found before anything moved: function, argument, seen, expected
  kUnsupported,      ///< cannot be done here; the message says what is missing and what would work
  kOverflow,   ///< more rows than the receive capacity; every rank gets it, `needed_rows` states the need. Also, when
               ///< windows are opened: more device memory than there is (needed_rows 0)
  kTimeout,    ///< a wait passed its deadline
  kPeerLost,   ///< a peer's process ended or it closed its group while it was waited for
  kMismatch,   ///< ranks are in different calls, or disagree about arguments or membership
  kAborted,    ///< abort() was called here or on a peer
  kBootstrap,  ///< ranks could not meet
  kInternal,   ///< a bug in Ferry
};

const char* name(ErrorCode code) noexcept;

/// One peer that a failed wait was waiting for.
struct PeerWait {
  int rank = -1;
  std::uint64_t seen = 0;    ///< the signal's value when the wait ended (epoch << 24 | count)
  std::uint64_t wanted = 0;  ///< the value it should have reached
  std::string activity{};    ///< what the peer said it was doing last, e.g. "call 1234 combine"; empty if unknown
};

/// `what()` is one complete sentence; the fields below hold its parts for programs.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  ErrorCode code() const noexcept { return code_; }

  std::string step;              ///< one of the seven steps, "meet" or the API function
  std::uint64_t epoch = 0;       ///< the number of the call that failed, 0 if none had begun
  std::vector<PeerWait> peers;   ///< who was waited for (timeout, peer_lost, mismatch)
  std::string argument;          ///< invalid_argument, unsupported: the argument's name
  std::int64_t needed_rows = 0;  ///< overflow: rows that the fullest rank would have needed

 private:
  ErrorCode code_;
};

}  // namespace ferry
