// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the network engine's tests share: waits with a deadline, windows, and a provider whose every step a test
// controls.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
  return engine.open(peer, engine.describe(memory), memory);
}

/// A window of `owner`'s rank, opened by another engine.
inline WindowId open_window(Engine& engine, Engine& owner, int peer, const std::shared_ptr<Memory>& memory) {
  return engine.open(peer, owner.describe(memory), engine.provider().maps_windows ? memory : nullptr);
}

inline std::uint64_t read_signal(const Memory& memory, std::uint64_t offset) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory.data() + offset)).load(std::memory_order_acquire);
}

inline constexpr std::size_t kRowWords = 8;
inline constexpr std::size_t kRowBytes = kRowWords * sizeof(std::uint64_t);
inline constexpr std::uint64_t kRowsPerPost = 24;
inline constexpr std::uint64_t kBuffers = 4;
inline constexpr std::uint64_t kSignalOffset = 0;
inline constexpr std::uint64_t kRowsOffset = 64;

inline std::uint64_t word_of(std::uint64_t batch, std::uint64_t row, std::uint64_t word) {
  return (batch << 20) ^ (row << 8) ^ word ^ 0x5a5a'0000'0000'0000;
}

inline std::uint64_t row_offset(std::uint64_t batch, std::uint64_t row) {
  return kRowsOffset + ((batch % kBuffers) * kRowsPerPost + row) * kRowBytes;
}

/// One sender, one reader (of the same engine, or of the peer's), a window with room for kBuffers batches; the reader hands credit back through `read_`.
class Stream {
 public:
  Stream(Engine& sender, Engine& reader, Channel& channel, int peer, bool mergeable)
      : channel_(channel),
        mergeable_(mergeable),
        source_free_(kBuffers),
        memory_(Memory::anonymous(row_offset(kBuffers - 1, kRowsPerPost))),
        sources_(Memory::anonymous(kBuffers * kRowsPerPost * kRowBytes)),
        window_(open_window(sender, reader, peer, memory_)) {}

  bool send(std::uint64_t batch) {
    if (batch >= kBuffers && !eventually([&] { return read_.load(std::memory_order_acquire) + kBuffers > batch; }))
      return false;
    const std::uint64_t needed = source_free_[batch % kBuffers];
    if (!eventually([&] { return channel_.completed() >= needed; })) return false;
    auto* rows = reinterpret_cast<std::uint64_t*>(sources_->data()) + (batch % kBuffers) * kRowsPerPost * kRowWords;
    for (std::uint64_t i = 0; i < kRowsPerPost; ++i) {
      const std::uint64_t row = mergeable_ ? i : i * 7 % kRowsPerPost;
      for (std::uint64_t w = 0; w < kRowWords; ++w) rows[i * kRowWords + w] = word_of(batch, row, w);
      if (!put(channel_, window_, row_offset(batch, row), rows + i * kRowWords, kRowBytes)) return false;
    }
    source_free_[batch % kBuffers] = channel_.submitted();
    return post(channel_, window_, kSignalOffset, batch + 1);
  }

  /// Checks all batches up to `count`; returns the number of wrong words, or one for a signal that never came.
  std::uint64_t read_all(std::uint64_t count) {
    std::uint64_t wrong = 0;
    for (std::uint64_t batch = 0; batch < count; ++batch) {
      if (!eventually([&] { return read_signal(*memory_, kSignalOffset) > batch; })) return wrong + 1;
      for (std::uint64_t row = 0; row < kRowsPerPost; ++row) {
        std::array<std::uint64_t, kRowWords> words;
        std::memcpy(words.data(), memory_->data() + row_offset(batch, row), kRowBytes);
        for (std::uint64_t w = 0; w < kRowWords; ++w) wrong += words[w] != word_of(batch, row, w);
      }
      read_.store(batch + 1, std::memory_order_release);
    }
    return wrong;
  }

 private:
  Channel& channel_;
  bool mergeable_;
  std::vector<std::uint64_t> source_free_;  // completed() that frees each buffer's source
  std::shared_ptr<Memory> memory_, sources_;
  WindowId window_;
  std::atomic<std::uint64_t> read_{0};
};

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
  std::vector<std::byte> describe(const std::shared_ptr<Memory>&) override { return {}; }
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
