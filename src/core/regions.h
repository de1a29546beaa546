// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The one list that gives size and offset of every region: adding a region yields its offset, the sum is the allocation.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ferry {

struct Region {
  std::string name;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};

class RegionList {
 public:
  explicit RegionList(std::int64_t alignment) : alignment_(alignment) {}

  /// Appends a region and returns its offset.
  std::int64_t add(std::string name, std::int64_t bytes) {
    const std::int64_t offset = total_;
    regions_.push_back({std::move(name), offset, bytes});
    total_ = (total_ + bytes + alignment_ - 1) / alignment_ * alignment_;
    return offset;
  }
  /// Appends `count` regions of one kind, "name[0]" and on; returns the first one's offset, and the step to the next.
  std::int64_t add_each(const std::string& name, std::int64_t bytes, std::int64_t count, std::int64_t& stride) {
    const std::int64_t first = add(name + "[0]", bytes);
    stride = total_ - first;
    for (std::int64_t i = 1; i < count; ++i) add(name + "[" + std::to_string(i) + "]", bytes);
    return first;
  }
  std::int64_t total_bytes() const noexcept { return total_; }
  const std::vector<Region>& regions() const noexcept { return regions_; }

 private:
  std::int64_t alignment_;
  std::int64_t total_ = 0;
  std::vector<Region> regions_;
};

}  // namespace ferry
