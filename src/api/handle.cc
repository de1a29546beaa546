// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "ferry/handle.h"

#include "backend/handle_layout.h"
#include "core/check.h"

namespace ferry {
namespace {

HandleView view_of(const Handle& handle) {
  if (!handle.valid()) refuse("ferry::Handle", "handle", "empty", "the handle of a dispatch");
  if (handle.bytes().size() < sizeof(HandleHeader) ||
      HandleView::header_at(handle.mutable_bytes()).magic != HandleHeader::kMagic) {
    refuse("ferry::Handle", "handle", "not a handle", "the handle of a dispatch");
  }
  return HandleView(handle.mutable_bytes());
}

}  // namespace

Layout Handle::layout() const {
  return static_cast<Layout>(view_of(*this).header().layout);
}
Mode Handle::mode() const {
  return static_cast<Mode>(view_of(*this).header().mode);
}
std::int64_t Handle::num_tokens() const {
  return view_of(*this).header().num_tokens;
}
int Handle::top_k() const {
  return view_of(*this).header().top_k;
}
std::int64_t Handle::num_rows() const {
  return view_of(*this).header().num_rows;
}
std::int64_t Handle::num_expert_rows() const {
  return view_of(*this).header().num_expert_rows;
}
int Handle::num_local_experts() const {
  return view_of(*this).header().num_local_experts;
}
std::int64_t Handle::expert_capacity() const {
  return view_of(*this).header().expert_capacity;
}

std::span<const std::int32_t> Handle::source_offsets() const {
  const HandleView view = view_of(*this);
  return {view.source_offsets(), static_cast<std::size_t>(view.header().num_ranks) + 1};
}

std::span<const std::int32_t> Handle::expert_counts() const {
  const HandleView view = view_of(*this);
  return {view.expert_counts(), static_cast<std::size_t>(view.header().num_local_experts)};
}

std::span<const std::int32_t> Handle::expert_offsets() const {
  const HandleView view = view_of(*this);
  return {view.expert_offsets(), static_cast<std::size_t>(view.header().num_local_experts) + 1};
}

std::int32_t Handle::source_token(std::int64_t row) const {
  const HandleView view = view_of(*this);
  if (row < 0 || row >= view.header().num_rows) {
    refuse("ferry::Handle::source_token", "row", fmt::to_string(row),
           fmt::format("0 to {}", view.header().num_rows - 1));
  }
  return view.record(row).source_token();
}

}  // namespace ferry
