// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as threads of this program.
#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "ferry/error.h"
#include "ranks_internal.h"

namespace ferry::app {
namespace {

using Clock = std::chrono::steady_clock;

/// Everything the threads and the launcher share. Threads hold a share of it, so a stuck one never uses freed memory.
struct Shared {
  explicit Shared(int num_ranks) : stops(static_cast<std::size_t>(num_ranks)) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<int, std::vector<std::byte>>> messages;
  std::optional<BlamedFailure> failure;
  int num_running = 0;
  int num_at_barrier = 0;
  std::uint64_t barriers_passed = 0;
  bool stopping = false;
  Clock::time_point last_sign = Clock::now();
  std::vector<std::function<void()>> stops;
};

class ThreadPort final : public RankPort {
 public:
  ThreadPort(std::shared_ptr<Shared> shared, std::unique_ptr<Meeting> meeting)
      : shared_(std::move(shared)), meeting_(std::move(meeting)) {}

  int rank() const noexcept override { return meeting_->rank(); }
  int size() const noexcept override { return meeting_->size(); }
  Meeting& meeting() override { return *meeting_; }

  void send(std::span<const std::byte> message) override {
    const std::lock_guard lock(shared_->mutex);
    shared_->messages.emplace_back(rank(), std::vector<std::byte>(message.begin(), message.end()));
    shared_->last_sign = Clock::now();
    shared_->changed.notify_all();
  }

  void barrier() override {
    std::unique_lock lock(shared_->mutex);
    const std::uint64_t mine = shared_->barriers_passed;
    shared_->last_sign = Clock::now();
    if (++shared_->num_at_barrier == size()) {
      shared_->num_at_barrier = 0;
      ++shared_->barriers_passed;
      shared_->changed.notify_all();
      return;
    }
    // The launcher's watch over silence is the deadline of this wait: it sets `stopping`.
    shared_->changed.wait(lock, [&] { return shared_->barriers_passed != mine || shared_->stopping; });
    if (shared_->barriers_passed == mine) throw Error(ErrorCode::kAborted, "barrier: another rank failed");
  }

  void set_stop(std::function<void()> stop) override {
    const std::lock_guard lock(shared_->mutex);
    shared_->stops[static_cast<std::size_t>(rank())] = std::move(stop);
  }

 private:
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<Meeting> meeting_;
};

void run_one(const std::shared_ptr<Shared>& shared, std::unique_ptr<Meeting> meeting,
             const std::function<void(RankPort&)>& body) {
  std::optional<BlamedFailure> failure;
  {
    ThreadPort port(shared, std::move(meeting));
    try {
      body(port);
    } catch (...) {
      failure = describe_exception(port.rank(), std::current_exception());
    }
    port.set_stop({});
  }
  const std::lock_guard lock(shared->mutex);
  if (failure) keep_worse(shared->failure, std::move(*failure));
  --shared->num_running;
  shared->changed.notify_all();
}

void stop_all(Shared& shared) {
  shared.stopping = true;
  for (const auto& stop : shared.stops) {
    if (stop) stop();
  }
  shared.changed.notify_all();
}

/// Waits for the threads, hands messages on, and stops everybody when one fails or all are silent. True if all have
/// ended.
bool watch(const Launch& launch, const std::shared_ptr<Shared>& shared) {
  std::unique_lock lock(shared->mutex);
  std::optional<Clock::time_point> stop_at;
  std::optional<Clock::time_point> give_up_at;
  while (shared->num_running > 0 || !shared->messages.empty()) {
    while (!shared->messages.empty()) {
      const auto [rank, message] = std::move(shared->messages.front());
      shared->messages.pop_front();
      lock.unlock();
      if (launch.on_message) launch.on_message(rank, message);
      lock.lock();
    }
    const auto now = Clock::now();
    if (!shared->failure && now - shared->last_sign > launch.silence_limit) {
      const auto seconds = std::chrono::duration<double>(launch.silence_limit).count();
      keep_worse(shared->failure,
                 {{.reason = fmt::format("no rank gave a sign of life for {:.0f} s", seconds)}, Blame::kOwnError});
    }
    if (shared->failure && !stop_at) stop_at = now + kGrace;
    if (stop_at && now >= *stop_at && !shared->stopping) {
      stop_all(*shared);
      give_up_at = now + std::chrono::seconds(10);
    }
    if (give_up_at && now >= *give_up_at) return false;
    if (shared->num_running > 0 && shared->messages.empty())
      shared->changed.wait_for(lock, std::chrono::milliseconds(100));
  }
  return true;
}

}  // namespace

std::optional<RunFailure> run_as_threads(const Launch& launch, const std::function<void(RankPort&)>& body) {
  auto shared = std::make_shared<Shared>(launch.num_ranks);
  auto meetings = meet_in_process(launch.num_ranks);
  shared->num_running = launch.num_ranks;
  std::vector<std::thread> threads;
  for (auto& meeting : meetings) {
    threads.emplace_back(
        [shared, &body, mine = std::move(meeting)]() mutable { run_one(shared, std::move(mine), body); });
  }
  const bool all_ended = watch(launch, shared);
  for (auto& thread : threads) all_ended ? thread.join() : thread.detach();
  const std::lock_guard lock(shared->mutex);
  if (!shared->failure) return std::nullopt;
  RunFailure failure = shared->failure->failure;
  failure.stuck = !all_ended;
  return failure;
}

}  // namespace ferry::app
