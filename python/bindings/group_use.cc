// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One thread at a time; what is dropped meanwhile goes later.
#include "group_use.h"

#include "errors.h"

namespace ferry::python {

OneAtATime::Turn OneAtATime::enter(const char* function) {
  if (is_inside_) refuse(function, "the object", "in use by another thread", "one thread at a time");
  is_inside_ = true;
  return Turn(*this);
}

void OneAtATime::drop(std::shared_ptr<void> object) {
  if (is_inside_) dropped_.push_back(std::move(object));
}

void OneAtATime::leave() noexcept {
  is_inside_ = false;
  while (!dropped_.empty()) {
    const auto going = std::move(dropped_.back());  // its destructor may run Python code and drop more
    dropped_.pop_back();
  }
}

void HandleStreams::remember(const Handle& handle, const Stream& stream) {
  entries_.push_back({handle.shadow(), stream});
  if (entries_.size() > most_) entries_.pop_front();
}

std::optional<Stream> HandleStreams::of(const Handle& handle) const {
  for (const Entry& entry : entries_) {
    if (handle.shadow() && entry.handle.lock() == handle.shadow()) return entry.stream;
  }
  return std::nullopt;
}

void GroupUse::retain(std::shared_ptr<void> arguments) {
  retained_.push_back({num_combines_ + static_cast<std::uint64_t>(num_flights_) + 1, std::move(arguments)});
}

void GroupUse::count_combine() {
  ++num_combines_;
  while (!retained_.empty() && retained_.front().until < num_combines_) {
    const auto going = std::move(retained_.front().arguments);
    retained_.pop_front();
  }
}

}  // namespace ferry::python
