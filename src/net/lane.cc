// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A lane's rules. Ordered provider: everything goes in the order of the commands. Any other: puts go at once and may
// overtake a waiting post, a post goes when all that came before it is complete.
#include "net/lane.h"

#include <algorithm>

namespace ferry::net {
namespace {

Ticket ticket_of(Order& order) {
  return reinterpret_cast<Ticket>(&order);
}

}  // namespace

bool Lane::add_put(RemoteWindow* window, std::uint64_t number, std::uint64_t offset, const std::byte* source,
                   std::uint64_t bytes) {
  if (!orders_.empty()) {
    Order& last = orders_.back();
    const bool untouched = !last.started && last.started_bytes == 0;
    if (untouched && !last.is_post && last.window == window && last.offset + last.bytes == offset &&
        last.source + last.bytes == source && last.bytes + bytes <= kMaxMergedBytes) {
      last.bytes += bytes;
      return true;
    }
  }
  orders_.push_back({.lane = this,
                     .window = window,
                     .is_post = false,
                     .number = number,
                     .offset = offset,
                     .source = source,
                     .bytes = bytes,
                     .total = 0,
                     .started_bytes = 0,
                     .unfinished = 0,
                     .started = false});
  return false;
}

void Lane::add_post(RemoteWindow* window, std::uint64_t number, std::uint64_t offset, std::uint64_t total) {
  if (!orders_.empty()) {
    Order& last = orders_.back();
    if (last.is_post && !last.started && last.window == window && last.offset == offset) {
      last.total = total;  // totals only grow: the newest says it all
      return;
    }
  }
  orders_.push_back({.lane = this,
                     .window = window,
                     .is_post = true,
                     .number = number,
                     .offset = offset,
                     .source = nullptr,
                     .bytes = 0,
                     .total = total,
                     .started_bytes = 0,
                     .unfinished = 0,
                     .started = false});
}

bool Lane::run(Budget budget) {
  bool moved = false;
  retire();
  while (!orders_.empty()) {
    Order& oldest = orders_.front();
    if (cursor_ > 0 && !oldest.started) {  // a post that waited and is now the oldest
      if (!start_post(oldest)) return moved;
      moved = true;
      retire();
      continue;
    }
    if (cursor_ == orders_.size() || budget.orders == 0 || budget.bytes == 0) return moved;
    Order& next = orders_[cursor_];
    if (next.is_post) {
      const bool may_go = ordered_ || cursor_ == 0;
      if (may_go && !start_post(next)) return moved;
      moved |= may_go;
    } else {
      const Step step = start_put(next, budget);
      if (step == Step::kBusy) return moved;
      moved = true;
      if (step == Step::kOutOfBudget) return moved;
    }
    ++cursor_;
    --budget.orders;
    retire();
  }
  return moved;
}

Lane::Step Lane::start_put(Order& order, Budget& budget) {
  while (order.started_bytes < order.bytes) {
    if (budget.bytes == 0) return Step::kOutOfBudget;
    const std::uint64_t piece = std::min(
        {order.bytes - order.started_bytes, static_cast<std::uint64_t>(carrier_.max_put_bytes()), budget.bytes});
    const Start start = carrier_.start_put({.window = order.window,
                                            .peer = peer_,
                                            .channel = channel_,
                                            .offset = order.offset + order.started_bytes,
                                            .source = order.source + order.started_bytes,
                                            .bytes = static_cast<std::size_t>(piece),
                                            .ticket = ticket_of(order)});
    if (start == Start::kBusy) return Step::kBusy;
    order.started_bytes += piece;
    budget.bytes -= piece;
    if (start == Start::kStarted) ++order.unfinished;
  }
  order.started = true;
  return Step::kMoved;
}

bool Lane::start_post(Order& order) {
  const Start start = carrier_.start_post({.window = order.window,
                                           .peer = peer_,
                                           .channel = channel_,
                                           .offset = order.offset,
                                           .total = order.total,
                                           .ticket = ticket_of(order)});
  if (start == Start::kBusy) return false;
  order.started = true;
  if (start == Start::kStarted) ++order.unfinished;
  return true;
}

void Lane::finish(Order& order) noexcept {
  --order.unfinished;
  retire();
}

void Lane::retire() noexcept {
  while (!orders_.empty() && orders_.front().done()) {
    orders_.pop_front();
    if (cursor_ > 0) --cursor_;
  }
}

void Lane::fail(std::uint64_t last_serial) noexcept {
  failed_serial_ = std::max(failed_serial_, last_serial);
  for (Order& order : orders_) order.started = true;  // pieces already handed over still complete
  cursor_ = orders_.size();
  retire();
}

}  // namespace ferry::net
