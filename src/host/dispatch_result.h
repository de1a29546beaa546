// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From rows in place to what the caller gets: rows by index, the handle, and the tensors of the result.
#pragma once

#include "backend/call.h"
#include "backend/handle_layout.h"
#include "backend/runtime.h"

namespace ferry::host {

/// Slots of one rank follow each other, so a comparison tells whose a slot is.
class LocalSlots {
 public:
  LocalSlots(const Placement& placement, int rank)
      : first_(placement.first_slot(rank)), count_(placement.num_local_experts(rank)) {}
  /// -1 for another rank's slot, and for no slot.
  std::int32_t expert(std::int32_t slot) const {
    const std::int32_t local = slot - first_;
    return slot >= 0 && local >= 0 && local < count_ ? local : -1;
  }

 private:
  std::int32_t first_, count_;
};

/// The rows of a result: each block has an array of its own, `capacity` rows long, the arrays follow each other.
class ResultRows {
 public:
  ResultRows(const DispatchCall& call, std::byte* base, std::int64_t capacity)
      : format_(call.format), base_(base), capacity_(capacity) {}

  std::byte* at(int block, std::int64_t row) const {
    return base_ + capacity_ * format_[block].offset + row * format_[block].padded;
  }
  void copy_row(std::int64_t from, std::int64_t to) const;
  /// From blocks that lie apart.
  void store_blocks(const std::array<const std::byte*, wire::kMaxBlocks>& blocks, std::int64_t to) const;
  /// From the wire form.
  void store_row(const std::byte* wire_row, std::int64_t to) const;

 private:
  const wire::RowFormat& format_;
  std::byte* base_;
  std::int64_t capacity_;
};

/// Refuses what a peer confessed in its note, or that its arguments differ.
void check_note(const DispatchCall& call, int source, const CallNote& note);

/// Allocates the handle (or takes the caller's memory), writes all of it but the records, and files it with the result.
/// A cached dispatch returns the handle it was given, under the same bytes.
HandleView make_handle(const Runtime& runtime, DispatchCall& call);

/// Fills call.result from the rows at `base` and the handle.
void make_result(const Runtime& runtime, DispatchCall& call, std::byte* base, std::int64_t capacity);

}  // namespace ferry::host
