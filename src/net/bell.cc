// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/bell.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "ferry/error.h"

namespace ferry::net {

Bell::Bell() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!event_)
    throw Error(ErrorCode::kInternal,
                fmt::format("the network proxy cannot have an eventfd: {}", std::strerror(errno)));
}

void Bell::wake() {
  asleep_.store(false, std::memory_order_seq_cst);  // the next ones need not ring
  const std::uint64_t one = 1;
  static_cast<void>(::write(event_.get(), &one, sizeof(one)));  // can only fail when it is readable anyway
}

void Bell::wait(std::chrono::nanoseconds at_most, std::vector<pollfd>* also) {
  std::vector<pollfd> alone;
  std::vector<pollfd>& watched = also == nullptr ? alone : *also;
  watched.push_back({event_.get(), POLLIN, 0});
  const timespec limit{.tv_sec = static_cast<time_t>(at_most.count() / 1'000'000'000),
                       .tv_nsec = at_most.count() % 1'000'000'000};
  if (::ppoll(watched.data(), watched.size(), &limit, nullptr) > 0 && watched.back().revents != 0) {
    std::uint64_t rung = 0;
    static_cast<void>(::read(event_.get(), &rung, sizeof(rung)));
  }
}

}  // namespace ferry::net
