// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A handle lies in memory that the caller may have lent, stored or mixed up: nothing in it is believed before it was checked.
#include <fmt/format.h>

#include <algorithm>

#include "api/group_state.h"
#include "core/check.h"

namespace ferry {
namespace {

bool is_complete(std::span<const std::byte> bytes, const HandleHeader& header) {
  const bool counts = header.num_ranks >= 0 && header.num_nodes >= 0 && header.num_slots >= 0 && header.top_k >= 0 &&
                      header.num_local_experts >= 0 && header.num_tokens >= 0 && header.num_rows >= 0 &&
                      header.num_forwarded >= 0;
  const auto size = static_cast<std::int64_t>(bytes.size());
  // Bounds before products: no part can have more elements than the memory has bytes.
  // A token has top_k entries and one per node, a row one record of top_k entries.
  const std::int64_t most_tokens = size / std::max({1, header.top_k, header.num_nodes});
  const std::int64_t most_rows = size / std::max(1, header.top_k);
  const bool bounded =
      header.num_tokens <= most_tokens && header.num_rows <= most_rows && header.num_forwarded <= most_rows;
  return counts && bounded && header.total_bytes == HandleView::bytes_for(header) && header.total_bytes <= size;
}

}  // namespace

const HandleHeader& check_handle(const char* function, const GroupState& group, const Handle* handle) {
  if (handle == nullptr || !handle->valid()) refuse(function, "handle", "absent", "the handle of a dispatch");
  if (handle->shadow() == nullptr && handle->bytes().size() < sizeof(HandleHeader)) {
    refuse(function, "handle", fmt::format("{} bytes", handle->bytes().size()),
           fmt::format("at least {}", sizeof(HandleHeader)));
  }
  const HandleHeader& header = header_of(*handle);
  if (header.magic != HandleHeader::kMagic)
    refuse(function, "handle", "not a handle (its first bytes differ)", "the handle of a dispatch");
  const bool on_device = handle->shadow() != nullptr;
  if (on_device != (group.runtime->device_memories != nullptr))
    refuse(function, "handle", on_device ? "in device memory" : "in host memory", "one that this group made");
  if (!on_device && !is_complete(handle->bytes(), header))
    refuse(function, "handle", "cut short or damaged", "all its bytes as a dispatch wrote them");
  const Runtime& runtime = *group.runtime;
  if (header.group != runtime.group || header.num_ranks != runtime.topology.num_ranks() ||
      header.num_nodes != runtime.topology.num_nodes()) {
    refuse(function, "handle", "of another group", "one that this group made");
  }
  if (header.rank != runtime.rank)
    refuse(function, "handle", fmt::format("of rank {}", header.rank), fmt::format("of rank {}", runtime.rank));
  return header;
}

void check_memory(const char* function, const std::string& argument, const Tensor& tensor) {
  if (tensor.num_elements() == 0) return;
  if (tensor.data == nullptr) refuse(function, argument, "a null pointer", "memory");
  const std::size_t element = dtype_bytes(tensor.dtype);
  for (int d = 0; d < tensor.ndim; ++d) {
    const auto i = static_cast<std::size_t>(d);
    std::int64_t span = 0;
    if (tensor.shape[i] > 1 && (__builtin_mul_overflow(tensor.shape[i] - 1, tensor.strides[i], &span) ||
                                __builtin_mul_overflow(span, static_cast<std::int64_t>(element), &span))) {
      refuse(function, argument, fmt::format("strided by {}", tensor.strides[i]), "strides that stay inside memory");
    }
  }
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % element != 0) {
    refuse(function, argument, fmt::format("at address {}", tensor.data),
           fmt::format("at a multiple of {} bytes, as {} needs", element, name(tensor.dtype)));
  }
}

void check_counter(const char* function, const char* argument, const Tensor& tensor, std::int64_t length,
                   bool narrow_too) {
  if (!tensor.present()) return;
  const bool right_dtype = tensor.dtype == DType::kInt64 || (narrow_too && tensor.dtype == DType::kInt32);
  const bool contiguous = tensor.ndim == 1 && (tensor.strides[0] == 1 || tensor.shape[0] <= 1);
  if (!right_dtype || !contiguous || tensor.shape[0] != length)
    refuse(function, argument, describe(tensor),
           fmt::format("[{}] {}, contiguous", length, narrow_too ? "int32 or int64" : "int64"));
  check_memory(function, argument, tensor);
}

}  // namespace ferry
