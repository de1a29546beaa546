// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/call.h"

#include <new>

namespace ferry {
namespace {
constexpr std::align_val_t kAlignment{64};
}

void ResultMemory::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, kAlignment);
}

void* ResultMemory::allocate(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes > 0 ? bytes : 1);
  blocks_.emplace_back(static_cast<std::byte*>(::operator new[](size, kAlignment)));
  return blocks_.back().get();
}

}  // namespace ferry
