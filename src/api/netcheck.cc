// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The conformance and bandwidth program of a network. Both ranks do the same: send to the peer's window, and check what the peer
// sends into theirs. Offsets: signals first, then rows.
#include "ferry/netcheck.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <thread>

#include "backend/engine_config.h"
#include "bootstrap/mesh.h"
#include "core/check.h"
#include "net/engine.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kWindowBytes = std::size_t{64} << 20;
constexpr std::uint64_t kRowsAt = 4096;
enum Signal : std::uint64_t {
  kArrived = 0,
  kCredit = 64,
  kSizes = 128,
  kPing = 192,
  kRate = 256,
  kFill = 320,
  kFillBoth = 448,
  kAgain = 384
};

/// What the wait of a check ends in when the peer or the network does not do its part.
struct CheckFailed {
  std::string why;
};

/// This rank's end: an engine, a window that the peer writes, memory that puts read.
class End {
 public:
  End(Meeting& meeting, std::unique_ptr<net::Engine> engine, std::chrono::nanoseconds patience)
      : meeting_(meeting), patience_(patience), engine_(std::move(engine)) {
    sources_ = Memory::shareable(kWindowBytes);
    static_cast<void>(engine_->describe(sources_));
    open();
  }

  /// Opens fresh windows on both sides; collective.
  void open() {
    window_ = Memory::shareable(kWindowBytes);
    const auto described = engine_->describe(window_);
    const auto everyone = meeting_.all_gather(described, patience_);
    const int peer = 1 - meeting_.rank();
    if (target_) engine_->close(*target_, sources_);
    target_ = engine_->open(peer, everyone[static_cast<std::size_t>(peer)], nullptr);
  }

  void meet() { meeting_.all_gather({}, patience_); }
  std::byte* window(std::uint64_t offset) const { return window_->data() + offset; }
  std::byte* source(std::uint64_t offset) const { return sources_->data() + offset; }
  net::Engine& engine() const { return *engine_; }

  void put(std::uint64_t offset, const std::byte* from, std::size_t bytes) {
    wait([&] { return channel().try_put(*target_, offset, from, bytes); }, "room in the ring");
  }
  void post(std::uint64_t signal, std::uint64_t total) {
    wait([&] { return channel().try_post(*target_, signal, total); }, "room in the ring");
  }
  std::uint64_t read(std::uint64_t signal) const {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(window(signal))).load(std::memory_order_acquire);
  }
  void wait_for(std::uint64_t signal, std::uint64_t total) {
    wait([&] { return read(signal) >= total; }, "the peer's signal");
  }
  void wait_completed() {
    const std::uint64_t submitted = channel().submitted();
    wait([&] { return channel().completed() >= submitted; }, "completions");
  }

  template <class Done>
  void wait(Done done, const char* what) {
    const auto deadline = Clock::now() + patience_;
    for (int looks = 1; !done(); ++looks) {
      if (looks % 64 != 0) continue;
      std::this_thread::yield();
      if (const auto failure = engine_->poll_error()) throw CheckFailed{failure->what};
      if (Clock::now() > deadline) throw CheckFailed{fmt::format("waited too long for {}", what)};
    }
  }

 private:
  net::Channel& channel() const { return engine_->channel(0); }

  Meeting& meeting_;
  std::chrono::nanoseconds patience_;
  std::unique_ptr<net::Engine> engine_;
  std::shared_ptr<Memory> window_, sources_;
  std::optional<net::WindowId> target_;
};

std::uint64_t word_of(std::uint64_t batch, std::uint64_t index) {
  return (batch * 0x9e3779b97f4a7c15u) ^ (index << 17) ^ index;
}

/// Batches of rows, a post each; the reader checks every word at every post and then gives the room back. Rows of the next batch may
/// arrive while this one is read, never into the same place.
void post_guards_its_rows(End& end) {
  constexpr std::uint64_t kBatches = 3000, kBuffers = 4, kRows = 24, kRowWords = 8;
  constexpr std::size_t kRowBytes = kRowWords * sizeof(std::uint64_t);
  std::array<std::uint64_t, kBuffers> free_after{};
  std::uint64_t sent = 0, seen = 0;
  while (sent < kBatches || seen < kBatches) {
    if (sent < kBatches && end.read(kCredit) + kBuffers > sent) {
      const std::uint64_t first = (sent % kBuffers) * kRows;
      if (free_after[sent % kBuffers] != 0) end.wait_completed();
      auto* rows = reinterpret_cast<std::uint64_t*>(end.source(first * kRowBytes));
      for (std::uint64_t i = 0; i < kRows * kRowWords; ++i) rows[i] = word_of(sent, i);
      for (std::uint64_t i = 0; i < kRows; ++i) {
        const std::uint64_t row = i * 7 % kRows;  // never next to the one before: each put travels by itself
        end.put(kRowsAt + (first + row) * kRowBytes, end.source((first + row) * kRowBytes), kRowBytes);
      }
      free_after[sent % kBuffers] = 1;
      end.post(kArrived, ++sent);
    }
    if (seen == kBatches) continue;
    const auto may_send = [&] { return sent < kBatches && end.read(kCredit) + kBuffers > sent; };
    // For both at once: each side may need what the other does next.
    end.wait([&] { return end.read(kArrived) > seen || may_send(); }, "the peer's signal");
    if (end.read(kArrived) <= seen) continue;
    const auto* rows =
        reinterpret_cast<const std::uint64_t*>(end.window(kRowsAt + (seen % kBuffers) * kRows * kRowBytes));
    for (std::uint64_t i = 0; i < kRows * kRowWords; ++i) {
      if (rows[i] != word_of(seen, i))
        throw CheckFailed{fmt::format("batch {}: word {} is not what was sent", seen, i)};
    }
    end.post(kCredit, ++seen);
  }
  end.wait_completed();
}

/// Puts of odd sizes to odd places: all bytes arrive, and none beside them.
void sizes_and_places(End& end) {
  constexpr std::array<std::size_t, 12> kSizes{1, 2, 3, 7, 8, 63, 65, 4097, 65537, (1 << 20) + 13, (16 << 20) + 1, 255};
  std::uint64_t at = kRowsAt + (1 << 20);
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < (std::size_t{32} << 20); ++i)
    end.source(0)[i] = static_cast<std::byte>((i * 2654435761u) >> 11);
  const auto first = at;
  for (const std::size_t bytes : kSizes) {
    at += 5;
    end.put(at, end.source(bytes % 61), bytes);
    end.post(Signal::kSizes, ++count);
    at += bytes;
  }
  end.wait_for(Signal::kSizes, count);
  at = first;
  for (const std::size_t bytes : kSizes) {
    for (int gap = 0; gap < 5; ++gap, ++at) {
      if (*end.window(at) != std::byte{0})
        throw CheckFailed{fmt::format("a byte beside a put of {} bytes was written", bytes)};
    }
    if (std::memcmp(end.window(at), end.source(bytes % 61), bytes) != 0)
      throw CheckFailed{fmt::format("a put of {} bytes did not arrive as it was sent", bytes)};
    at += bytes;
  }
  end.wait_completed();
}

/// As after a change of membership.
void fresh_windows(End& end) {
  for (int i = 1; i <= 3; ++i) {
    end.open();
    end.source(0)[0] = static_cast<std::byte>(i);
    end.put(kRowsAt, end.source(0), 1);
    end.post(kAgain, 1);
    end.wait_for(kAgain, 1);
    if (*end.window(kRowsAt) != static_cast<std::byte>(i)) throw CheckFailed{"a fresh window holds an old row"};
    end.wait_completed();
    end.meet();
  }
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double measure_latency(End& end, bool starts) {
  constexpr std::uint64_t kRounds = 2000;
  std::vector<double> times;
  for (std::uint64_t i = 1; i <= kRounds; ++i) {
    const auto start = Clock::now();
    if (!starts) end.wait_for(kPing, i);
    end.put(kRowsAt, end.source(0), sizeof(std::uint64_t));
    end.post(kPing, i);
    if (!starts) continue;
    end.wait_for(kPing, i);
    times.push_back(seconds_since(start) / 2);
  }
  end.wait_completed();
  if (times.empty()) return 0;
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2] * 1e6;
}

/// CPU time of this process's other threads is the proxy's.
double cpu_seconds(int who) {
  rusage usage{};
  ::getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Sent {
  double seconds = 0;
  double proxy_share = 0;
};

/// `count` puts of `bytes`, each with a post when `post_each`, to a signal that nobody has used; over when the peer has said that it has seen all of them.
Sent send_many(End& end, std::uint64_t signal, std::uint64_t count, std::size_t bytes, bool post_each, bool sends,
               bool receives) {
  constexpr std::uint64_t kPlaces = 16;
  end.meet();
  const std::uint64_t told = signal + sizeof(std::uint64_t);
  const auto start = Clock::now();
  const double cpu = cpu_seconds(RUSAGE_SELF) - cpu_seconds(RUSAGE_THREAD);
  for (std::uint64_t i = 1; sends && i <= count; ++i) {
    end.put(kRowsAt + (i % kPlaces) * 2 * bytes, end.source((i % kPlaces) * 2 * bytes),
            bytes);  // gaps: nothing is merged
    if (post_each || i == count) end.post(signal, i);
  }
  if (receives) end.wait_for(signal, count), end.post(told, 1);
  if (sends) end.wait_for(told, 1);
  Sent sent{.seconds = seconds_since(start)};
  sent.proxy_share = (cpu_seconds(RUSAGE_SELF) - cpu_seconds(RUSAGE_THREAD) - cpu) / sent.seconds;
  end.wait_completed();
  return sent;
}

void measure(End& end, int rank, NetworkReport& report) {
  constexpr std::uint64_t kMessages = 20'000, kLarge = 512;
  constexpr std::size_t kLargeBytes = std::size_t{1} << 20;
  const bool first = rank == 0;
  report.latency_us = measure_latency(end, first);
  const Sent small = send_many(end, kRate, kMessages, 64, true, first, !first);
  report.messages_per_s = static_cast<double>(kMessages) / small.seconds;
  const double gigabytes = static_cast<double>(kLarge * kLargeBytes) / 1e9;
  const Sent large = send_many(end, kFill, kLarge, kLargeBytes, false, first, !first);
  report.bandwidth_gbps = gigabytes / large.seconds;
  report.proxy_share = large.proxy_share;
  report.both_ways_gbps = 2 * gigabytes / send_many(end, kFillBoth, kLarge, kLargeBytes, false, true, true).seconds;
}

/// A check failed where either rank says so.
void run_check(Meeting& meeting, std::chrono::nanoseconds timeout, NetworkReport& report, const char* name,
               const std::function<void()>& check) {
  std::string mine;
  try {
    check();
  } catch (const CheckFailed& failure) {
    mine = fmt::format("rank {}: {}", meeting.rank(), failure.why);
  }
  const auto everyone = meeting.all_gather(std::as_bytes(std::span(mine.data(), mine.size())), timeout);
  NetworkCheck done{.name = name, .failure = {}};
  for (const auto& theirs : everyone) {
    if (done.failure.empty()) done.failure.assign(reinterpret_cast<const char*>(theirs.data()), theirs.size());
  }
  report.checks.push_back(std::move(done));
}

/// The figures are rank 0's.
void share_figures(Meeting& meeting, std::chrono::nanoseconds timeout, NetworkReport& report) {
  std::array<double, 5> figures{report.latency_us, report.messages_per_s, report.bandwidth_gbps, report.both_ways_gbps,
                                report.proxy_share};
  const auto everyone = meeting.all_gather(std::as_bytes(std::span(figures)), timeout);
  if (everyone[0].size() == sizeof(figures)) std::memcpy(figures.data(), everyone[0].data(), sizeof(figures));
  report.latency_us = figures[0];
  report.messages_per_s = figures[1];
  report.bandwidth_gbps = figures[2];
  report.both_ways_gbps = figures[3];
  report.proxy_share = figures[4];
}

}  // namespace

bool NetworkReport::passed() const {
  const auto is_good = [](const NetworkCheck& check) { return check.failure.empty(); };
  return why_not.empty() && !checks.empty() && std::all_of(checks.begin(), checks.end(), is_good);
}

NetworkReport check_network(Meeting& meeting, const std::string& network, const NetworkOptions& options,
                            std::chrono::nanoseconds timeout) {
  constexpr const char* kFunction = "ferry::check_network";
  if (meeting.size() != 2) refuse(kFunction, "meeting", fmt::format("of {} ranks", meeting.size()), "one of 2 ranks");
  const std::vector<int> machines = find_machines(meeting, timeout);
  net::EngineConfig config = engine_config(options, network, meeting.rank(), machines.back() == 0);
  NetworkReport report;
  report.network = network;
  std::unique_ptr<net::Engine> engine;
  try {
    engine = net::make_engine(config);
    if (engine->provider().maps_windows) report.why_not = "it is a copy inside this machine; nothing to check here";
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) throw;
    report.why_not = error.what();
  }
  const auto reasons =
      meeting.all_gather(std::as_bytes(std::span(report.why_not.data(), report.why_not.size())), timeout);
  for (const auto& theirs : reasons) {
    if (report.why_not.empty()) report.why_not.assign(reinterpret_cast<const char*>(theirs.data()), theirs.size());
  }
  if (!report.why_not.empty()) return report;
  report.detail = engine->provider().detail;
  End end(meeting, std::move(engine), timeout);
  const auto check = [&](const char* name, const std::function<void()>& body) {
    run_check(meeting, timeout, report, name, body);
    return report.checks.back().failure.empty();
  };
  const bool sound = check("a post guards its rows", [&] { post_guards_its_rows(end); }) &&
                     check("sizes and places", [&] { sizes_and_places(end); }) &&
                     check("fresh windows", [&] { fresh_windows(end); }) &&
                     check("latency, rate, bandwidth", [&] { measure(end, meeting.rank(), report); });
  if (sound) share_figures(meeting, timeout, report);
  end.meet();  // nobody closes its end while the other still has something on its way
  return report;
}

}  // namespace ferry
