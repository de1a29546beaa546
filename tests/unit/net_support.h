// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the network engine's tests share: waits with a deadline, windows, and a provider whose every step a test
// controls.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap/memory.h"
#include "net/carrier.h"
#include "net/engine.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define FERRY_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define FERRY_TEST_SANITIZED 1
#endif
#endif

namespace ferry::net::test {

#if defined(FERRY_TEST_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// False: not within the deadline.
template <class Ready>
bool eventually(Ready ready, std::chrono::nanoseconds deadline = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

inline bool put(Channel& channel, WindowId window, std::uint64_t offset, const void* source, std::size_t bytes) {
  return eventually([&] { return channel.try_put(window, offset, source, bytes); });
}

inline bool post(Channel& channel, WindowId window, std::uint64_t offset, std::uint64_t total) {
  return eventually([&] { return channel.try_post(window, offset, total); });
}

inline bool all_completed(const Channel& channel) {
  return eventually([&] { return channel.completed() == channel.submitted(); });
}

inline WindowId open_window(Engine& engine, int peer, const std::shared_ptr<Memory>& memory) {
  return engine.open(peer, engine.describe(*memory), memory);
}

inline std::uint64_t read_signal(const Memory& memory, std::uint64_t offset) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory.data() + offset)).load(std::memory_order_acquire);
}

/// Takes everything, completes only what the test lets it complete, and keeps a diary. Windows are told apart by size.
class ScriptedCarrier final : public Carrier {
 public:
  struct Entry {
    bool is_post;
    std::uint64_t window_bytes;
    int channel;
    std::uint64_t offset;
    std::uint64_t bytes_or_total;
    Ticket ticket;
  };
  /// Shared with the test, which reads and writes it while the proxy runs.
  struct Script {
    std::mutex mutex;
    std::vector<Entry> diary;
    std::vector<Completion> to_complete;
    std::map<std::uint64_t, bool> busy;  // by window size
    std::string throw_from_start;
    std::string throw_from_progress;
    bool finish_at_once = false;

    std::vector<Entry> read() {
      const std::lock_guard lock(mutex);
      return diary;
    }
    void complete(Ticket ticket, std::string failure = {}) {
      const std::lock_guard lock(mutex);
      to_complete.push_back({ticket, std::move(failure)});
    }
    void set_busy(std::uint64_t window_bytes, bool is_busy) {
      const std::lock_guard lock(mutex);
      busy[window_bytes] = is_busy;
    }
  };

  ScriptedCarrier(std::shared_ptr<Script> script, bool ordered, std::size_t max_put_bytes = 1 << 20)
      : script_(std::move(script)),
        provider_{.name = "scripted", .why_not = "", .ordered = ordered},
        max_put_bytes_(max_put_bytes) {}

  const Provider& provider() const override { return provider_; }
  std::vector<std::byte> describe(const Memory&) override { return {}; }
  std::unique_ptr<RemoteWindow> attach(int, std::span<const std::byte>, std::shared_ptr<Memory> memory) override {
    return std::make_unique<RemoteWindow>(memory->size());
  }
  std::size_t max_put_bytes() const override { return max_put_bytes_; }
  Start start_put(const PutRequest& request) override {
    return take({false, request.window->size_bytes(), request.channel, request.offset, request.bytes, request.ticket});
  }
  Start start_post(const PostRequest& request) override {
    return take({true, request.window->size_bytes(), request.channel, request.offset, request.total, request.ticket});
  }
  bool progress(std::vector<Completion>& completions) override {
    const std::lock_guard lock(script_->mutex);
    if (!script_->throw_from_progress.empty()) throw std::runtime_error(script_->throw_from_progress);
    completions = std::move(script_->to_complete);
    script_->to_complete.clear();
    return !completions.empty();
  }

 private:
  Start take(const Entry& entry) {
    const std::lock_guard lock(script_->mutex);
    if (!script_->throw_from_start.empty()) throw std::runtime_error(script_->throw_from_start);
    if (script_->busy[entry.window_bytes]) return Start::kBusy;
    script_->diary.push_back(entry);
    return script_->finish_at_once ? Start::kDone : Start::kStarted;
  }

  std::shared_ptr<Script> script_;
  Provider provider_;
  std::size_t max_put_bytes_;
};

}  // namespace ferry::net::test
