// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Handles: a header and arrays in one piece of memory, read and copied; docs/handle.md.
#include "ferry/handle.h"

#include "backend/handle_layout.h"
#include "core/check.h"

namespace ferry {
namespace {

const HandleHeader& checked_header(const Handle& handle) {
  if (!handle.valid()) refuse("ferry::Handle", "handle", "empty", "the handle of a dispatch");
  const bool whole = handle.shadow() != nullptr || handle.bytes().size() >= sizeof(HandleHeader);
  if (!whole || header_of(handle).magic != HandleHeader::kMagic)
    refuse("ferry::Handle", "handle", "not a handle", "the handle of a dispatch");
  return header_of(handle);
}

using Counts = std::span<const std::int32_t>;

/// An array of the handle: in its block on the host, or in the shadow of a block on a device.
Counts counts_of(const Handle& handle, const char* function, std::vector<std::int32_t> HandleShadow::*in_shadow,
                 std::int32_t* (HandleView::*in_block)() const, std::int32_t size) {
  if (handle.shadow() == nullptr)
    return {(HandleView(handle.mutable_bytes()).*in_block)(), static_cast<std::size_t>(size)};
  if (handle.shadow()->counts_known) return *handle.shadow().*in_shadow;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("ferry::Handle::{}: the dispatch was made with host_counts == false, so the counts are on the "
                  "device alone; use the tensors of DispatchResult",
                  function));
}

}  // namespace

Layout Handle::layout() const {
  return static_cast<Layout>(checked_header(*this).layout);
}
Mode Handle::mode() const {
  return static_cast<Mode>(checked_header(*this).mode);
}
std::int64_t Handle::num_tokens() const {
  return checked_header(*this).num_tokens;
}
int Handle::top_k() const {
  return checked_header(*this).top_k;
}
std::int64_t Handle::num_rows() const {
  return checked_header(*this).num_rows;
}
std::int64_t Handle::num_expert_rows() const {
  return checked_header(*this).num_expert_rows;
}
int Handle::num_local_experts() const {
  return checked_header(*this).num_local_experts;
}
std::int64_t Handle::expert_capacity() const {
  return checked_header(*this).expert_capacity;
}

std::span<const std::int32_t> Handle::source_offsets() const {
  const HandleHeader& header = checked_header(*this);
  return counts_of(*this, "source_offsets", &HandleShadow::source_offsets, &HandleView::source_offsets,
                   header.num_ranks + 1);
}

std::span<const std::int32_t> Handle::expert_counts() const {
  const HandleHeader& header = checked_header(*this);
  return counts_of(*this, "expert_counts", &HandleShadow::expert_counts, &HandleView::expert_counts,
                   header.num_local_experts);
}

std::span<const std::int32_t> Handle::expert_offsets() const {
  const HandleHeader& header = checked_header(*this);
  return counts_of(*this, "expert_offsets", &HandleShadow::expert_offsets, &HandleView::expert_offsets,
                   header.num_local_experts + 1);
}

std::int32_t Handle::source_token(std::int64_t row) const {
  const HandleHeader& header = checked_header(*this);
  if (shadow_ != nullptr)
    throw Error(ErrorCode::kUnsupported, "ferry::Handle::source_token: the handle's records are in device memory");
  if (row < 0 || row >= header.num_rows)
    refuse("ferry::Handle::source_token", "row", fmt::to_string(row), fmt::format("0 to {}", header.num_rows - 1));
  return HandleView(mutable_bytes()).record(row).source_token();
}

}  // namespace ferry
