// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The words for each kind of fault; see faults.h.
#include "cuda/faults.h"

#include <fmt/format.h>

#include <string>

namespace ferry::cuda {
namespace {

const char* name_of(FaultStep step) {
  switch (step) {
    case FaultStep::kRoute:
      return "route";
    case FaultStep::kDispatchSend:
      return "dispatch_send";
    case FaultStep::kDispatchForward:
      return "dispatch_forward";
    case FaultStep::kDispatchRecv:
      return "dispatch_recv";
    case FaultStep::kCombineSend:
      return "combine_send";
    case FaultStep::kCombineForward:
      return "combine_forward";
    case FaultStep::kCombineRecv:
      return "combine_recv";
  }
  return "";
}

ErrorCode code_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kTimeout:
      return ErrorCode::kTimeout;
    case FaultKind::kAborted:
      return ErrorCode::kAborted;
    case FaultKind::kBadId:
      return ErrorCode::kInvalidArgument;
    case FaultKind::kOverflow:
      return ErrorCode::kOverflow;
    case FaultKind::kMismatch:
    case FaultKind::kGoneOn:
    case FaultKind::kGivenUp:
    case FaultKind::kLeftOut:
      return ErrorCode::kMismatch;
    case FaultKind::kRowsMissing:
      return ErrorCode::kPeerLost;
    case FaultKind::kNone:
      break;
  }
  return ErrorCode::kInternal;
}

std::string describe(const Fault& fault, int rank) {
  const std::string where = fmt::format("{}: rank {} in call {}", name_of(fault.step), rank, fault.epoch);
  switch (fault.kind) {
    case FaultKind::kTimeout:
      return fmt::format("{} waits for rank {} (seen {}.{}, wanted {}.{}): the deadline has passed", where, fault.peer,
                         fault.seen >> 24, fault.seen & 0xffffff, fault.wanted >> 24, fault.wanted & 0xffffff);
    case FaultKind::kAborted:
      return fmt::format("{} waits for rank {}: the group was aborted", where, fault.peer);
    case FaultKind::kBadId:
      return fmt::format(
          "{}: topk_ids of rank {} at row {} is {}, expected less than the number of experts (or negative)", where,
          fault.peer, fault.where, fault.value);
    case FaultKind::kOverflow:
      if (fault.step != FaultStep::kRoute)  // latency mode, an expert of this rank
        return fmt::format("{}: an expert of rank {} needs {} rows, expert_capacity is {}", where, fault.peer,
                           fault.where, fault.value);
      if (fault.expert < 0)
        return fmt::format("{}: rank {} needs {} rows, its receive window holds {} (limits.recv_rows)", where,
                           fault.peer, fault.where, fault.value);
      return fmt::format("{}: expert {} on rank {} needs {} rows, expert_capacity is {}", where, fault.expert,
                         fault.peer, fault.where, fault.value);
    case FaultKind::kMismatch:
      return fmt::format("{}: rank {} gave other arguments than this rank", where, fault.peer);
    case FaultKind::kGoneOn:
      return fmt::format("{}: rank {} has gone on to call {}", where, fault.peer, fault.seen);
    case FaultKind::kGivenUp:
      return fmt::format("{}: rank {} has given up on this call", where, fault.peer);
    case FaultKind::kLeftOut:
      return fmt::format("{}: rank {} has left this rank ({}) out; unmask({}) here and there", where, fault.peer, rank,
                         rank);
    case FaultKind::kRowsMissing:
      if (fault.step == FaultStep::kRoute)
        return fmt::format("{}: a rank was masked after the call was launched; make it again", where);
      return fmt::format("{}: {} rows came, {} were to come: a rank was masked on the way; dispatch with topk_ids",
                         where, fault.where, fault.value);
    case FaultKind::kNone:
      break;
  }
  return where;
}

}  // namespace

Error error_of(const Fault& fault, int rank) {
  Error error(code_of(fault.kind), describe(fault, rank));
  error.step = name_of(fault.step);
  error.epoch = fault.epoch;
  if (fault.kind == FaultKind::kOverflow) error.needed_rows = fault.where;
  if (fault.kind == FaultKind::kBadId) error.argument = "topk_ids";
  if (fault.kind != FaultKind::kBadId && fault.kind != FaultKind::kOverflow && fault.peer >= 0)
    error.peers.push_back({.rank = fault.peer});
  if (fault.kind == FaultKind::kTimeout || fault.kind == FaultKind::kAborted) {
    error.peers.back().seen = fault.seen;
    error.peers.back().wanted = fault.wanted;
  }
  return error;
}

}  // namespace ferry::cuda
