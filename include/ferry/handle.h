// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a dispatch remembers for combine and for cached dispatches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ferry/types.h"

namespace ferry {

struct HandleShadow;

/// Plain data in one block of memory without pointers (layout: docs/handle.md), owned by the handle or lent by the caller.
/// Copies share the block; lent memory must outlive all of them. A handle may be used by any number of combines and cached
/// dispatches of the group that made it, also after its receive window was reused. After masks changed, combine still takes it
/// (ranks left out contribute nothing) unless other ranks forward between nodes now; cached dispatches refuse it.
///
/// On the cuda backend the block is device memory and the header stays in this object: keep the Handle, not its bytes. After
/// host_counts == false the host does not know the counts: num_rows() and num_expert_rows() are the capacity, and the spans are
/// refused with Error(unsupported), as source_token() always is; DispatchResult has the counts as tensors.
class Handle {
 public:
  Handle() = default;

  bool valid() const noexcept { return !bytes_.empty(); }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

  Layout layout() const;
  Mode mode() const;
  std::int64_t num_tokens() const;       ///< T: tokens this rank dispatched
  int top_k() const;                     ///< K
  std::int64_t num_rows() const;         ///< N: (token, this rank) pairs received
  std::int64_t num_expert_rows() const;  ///< Nx: rows of the expert layouts, padding included
  int num_local_experts() const;
  std::int64_t expert_capacity() const;  ///< rows per expert of expert_padded, else 0

  std::span<const std::int32_t> source_offsets()
      const;  ///< [R + 1] rows from rank s are [o[s], o[s + 1]) in rank-major order
  std::span<const std::int32_t> expert_counts() const;   ///< [E_local] rows per local expert, without padding
  std::span<const std::int32_t> expert_offsets() const;  ///< [E_local + 1] first row of each expert (expert layouts)
  std::int32_t source_token(std::int64_t row) const;     ///< index at its source of rank-major row `row`

  /// Used by the library to build a handle over memory; `owner` keeps it alive (null: the caller lends it).
  Handle(std::shared_ptr<const void> owner, std::span<std::byte> bytes) : owner_(std::move(owner)), bytes_(bytes) {}
  std::span<std::byte> mutable_bytes() const noexcept { return bytes_; }
  const std::shared_ptr<const void>& owner() const noexcept { return owner_; }
  /// The same for a handle whose block is device memory: the shadow holds what the host knows of it.
  Handle(std::shared_ptr<const void> owner, std::span<std::byte> bytes, std::shared_ptr<HandleShadow> shadow)
      : owner_(std::move(owner)), bytes_(bytes), shadow_(std::move(shadow)) {}
  const std::shared_ptr<HandleShadow>& shadow() const noexcept { return shadow_; }

 private:
  std::shared_ptr<const void> owner_;
  std::span<std::byte> bytes_;
  std::shared_ptr<HandleShadow> shadow_;
};

}  // namespace ferry
