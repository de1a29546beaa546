// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The proxy's loop: per pass a few dozen commands of each channel, a bounded turn for each peer, the provider's
// completions, then rest if nothing moved. Nothing is thrown out of the thread.
#include "net/proxy.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {
namespace {

constexpr int kCommandsPerPass = 48;
constexpr Budget kTurn{.bytes = std::uint64_t{512} << 10, .orders = 64};

// Rest: a few microseconds of spinning, then give the core to others, then sleep. Ranks and proxies may outnumber
// cores.
constexpr int kSpinPasses = 64;
constexpr int kYieldPasses = 16;
constexpr std::chrono::microseconds kNapWhileBusy{20};  // transfers are on their way: look again soon
// Who only drives the provider for its peers naps longer once nothing has come for about 50 ms.
constexpr std::chrono::microseconds kNapWhileQuiet{200};
// A waiting rank makes the passes (help()).
constexpr std::chrono::microseconds kNapWhileHelped{200};
// With descriptors to watch it need not look so often; this bounds what a provider costs that forgets to say something.
constexpr std::chrono::milliseconds kWatch{1};
constexpr std::chrono::milliseconds kWatchWhileQuiet{10};
constexpr int kQuietAfterPasses = kSpinPasses + kYieldPasses + 700;
constexpr std::chrono::milliseconds kSleepAtMost{500};  // the bell wakes us; this bounds the wait all the same

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// A new thread inherits the signal mask of its creator. Signals that say that this very thread went wrong must get
/// through.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t others;
    sigfillset(&others);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) sigdelset(&others, own);
    pthread_sigmask(SIG_BLOCK, &others, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

bool bind_to_core(std::thread& thread, int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (core >= CPU_SETSIZE) return false;
  CPU_SET(static_cast<unsigned>(core), &cores);
  return pthread_setaffinity_np(thread.native_handle(), sizeof(cores), &cores) == 0;
}

/// Empty if the command stays inside its window.
std::string out_of_range(const Command& command, std::uint64_t window_bytes) {
  const bool is_put = command.operation == Operation::kPut;
  const std::uint64_t bytes = is_put ? command.bytes : sizeof(std::uint64_t);
  if (bytes > window_bytes || command.offset > window_bytes - bytes) {
    return fmt::format("{} of {} bytes at offset {} reaches beyond the window's {} bytes", is_put ? "put" : "post",
                       bytes, command.offset, window_bytes);
  }
  if (!is_put && command.offset % sizeof(std::uint64_t) != 0) {
    return fmt::format("post to offset {}; expected a multiple of 8", command.offset);
  }
  return {};
}

}  // namespace

void FailureBox::report(Failure failure) {
  keep(std::move(failure), kMaxKept);
}

void FailureBox::report_end(Failure failure) {
  keep(std::move(failure), kMaxKept + 1);
}

void FailureBox::keep(Failure failure, std::size_t at_most) {
  const std::lock_guard lock(mutex_);
  if (failures_.size() >= at_most) return;
  failures_.push_back(std::move(failure));
  any_.store(true, std::memory_order_release);  // a hint: the list is read under the mutex, whatever this order
}

std::optional<Failure> FailureBox::take() {
  if (!any_.load(std::memory_order_acquire)) return std::nullopt;
  const std::lock_guard lock(mutex_);
  if (failures_.empty()) return std::nullopt;
  Failure failure = std::move(failures_.front());
  failures_.pop_front();
  any_.store(!failures_.empty(), std::memory_order_relaxed);
  return failure;
}

Proxy::Proxy(Carrier& carrier, WindowTable& windows, std::span<const std::unique_ptr<RingChannel>> channels, Bell& bell,
             FailureBox& failures, int core)
    : carrier_(carrier), windows_(windows), bell_(bell), failures_(failures), completed_(channels.size()) {
  for (const auto& channel : channels) {
    Stream stream;
    stream.channel = channel.get();
    stream.index = static_cast<int>(streams_.size());
    streams_.push_back(std::move(stream));
  }
  const SignalsBlocked blocked;
  try {
    thread_ = std::thread([this] { work(); });
  } catch (const std::system_error& failure) {
    throw Error(ErrorCode::kInternal,
                fmt::format("the network proxy's thread could not be started: {}", failure.what()));
  }
  pthread_setname_np(thread_.native_handle(), "ferry-proxy");  // from here: who has the engine finds the thread by name
  if (core < 0 || bind_to_core(thread_, core)) return;
  stop();
  refuse_unsupported("ferry::net::make_engine", "proxy_cores",
                     fmt::format("this process may not run its network proxy on core {}; see taskset -p", core));
}

Proxy::~Proxy() {
  stop();
}

void Proxy::stop() {
  if (!thread_.joinable()) return;
  stop_.store(true, std::memory_order_seq_cst);
  bell_.ring();
  thread_.join();
}

void Proxy::work() noexcept {
  constexpr unsigned long kTimerSlackNs = 1000;  // a nap of 20 us shall not take 70
  ::prctl(PR_SET_TIMERSLACK, kTimerSlackNs);
  try {
    loop();
    return;
  } catch (const std::exception& failure) {
    end_with(failure.what());
  } catch (...) {
    end_with("an exception of unknown type");
  }
}

/// Nobody makes another pass.
void Proxy::end_with(const char* why) noexcept {
  ended_.store(true, std::memory_order_release);
  try {
    failures_.report_end({-1, fmt::format("the network proxy ({}) stopped: {}", carrier_.provider().name, why)});
  } catch (...) {  // no memory for the message: the ring fills up and every wait ends at its deadline
  }
}

void Proxy::loop() {
  int idle_passes = 0;
  while (!stopping() && !ended_.load(std::memory_order_acquire)) {
    bool moved = false;
    {
      const std::lock_guard lock(pass_mutex_);
      moved = pass();
    }
    if (moved) {
      idle_passes = 0;
    } else {
      back_off(idle_passes++);
    }
  }
}

bool Proxy::help() {
  const std::unique_lock lock(pass_mutex_, std::try_to_lock);
  if (!lock.owns_lock() || ended_.load(std::memory_order_acquire)) return false;
  helps_.fetch_add(1, std::memory_order_relaxed);
  try {
    return pass();
  } catch (const std::exception& failure) {
    end_with(failure.what());
  }
  return false;
}

bool Proxy::pass() {
  bool moved = false;
  drop_given_up();
  for (std::size_t i = 0; i < streams_.size() && !stopping(); ++i) {
    Stream& stream = streams_[(first_stream_ + i) % streams_.size()];
    moved |= drain(stream);
    moved |= run_lanes(stream);
  }
  first_stream_ = (first_stream_ + 1) % streams_.size();
  moved |= finish_transfers();
  for (Stream& stream : streams_) publish_completed(stream);
  if (windows_.has_closing()) retire_windows();
  return moved;
}

bool Proxy::drain(Stream& stream) {
  Ring& ring = stream.channel->ring();
  CommandWords words;
  int taken = 0;
  while (taken < kCommandsPerPass && ring.front(words) && take(stream, words)) {
    ring.pop();
    ++taken;
  }
  ring.return_slots();
  return taken != 0;
}

/// False: the peer's lane is full; the command stays in the ring.
bool Proxy::take(Stream& stream, CommandWords words) {
  const std::uint64_t number = stream.channel->ring().popped();
  Command command;
  if (!unpack(words, command)) {
    failures_.report({-1, fmt::format("channel {}, command {}: {:#018x} {:#018x} is no command", stream.index, number,
                                      words.first, words.second)});
    return true;
  }
  const WindowEntry* entry = windows_.find(command.window_slot);
  if (entry == nullptr) {
    failures_.report({-1, fmt::format("channel {}, command {}: window slot {} is not open", stream.index, number,
                                      command.window_slot)});
    return true;
  }
  Lane& lane = lane_for(stream, *entry);
  if (lane.refuses(entry->serial)) return true;
  if (lane.full()) return false;
  const std::string refusal = out_of_range(command, entry->window->size_bytes());
  if (!refusal.empty()) {
    fail_lane(lane, fmt::format("channel {}, command {}: {}", stream.index, number, refusal));
    return true;
  }
  if (lane.empty()) stream.active.push_back(&lane);
  if (command.operation == Operation::kPost) {
    lane.add_post(entry->window.get(), number, command.offset, command.total);
    return true;
  }
  const auto* source = reinterpret_cast<const std::byte*>(command.source);
  const bool merged = lane.add_put(entry->window.get(), number, command.offset, source, command.bytes);
  stream.channel->count_carried(command.bytes, merged ? 1 : 0);
  return true;
}

Lane& Proxy::lane_for(Stream& stream, const WindowEntry& entry) {
  const auto index = static_cast<std::size_t>(entry.lane);
  if (index >= stream.lanes.size()) stream.lanes.resize(index + 1);
  if (!stream.lanes[index]) stream.lanes[index] = std::make_unique<Lane>(carrier_, stream.index, entry.peer);
  return *stream.lanes[index];
}

bool Proxy::run_lanes(Stream& stream) {
  bool moved = false;
  const std::size_t count = stream.active.size();
  for (std::size_t i = 0; i < count && !stopping(); ++i) moved |= run_lane(*stream.active[(stream.turn + i) % count]);
  ++stream.turn;
  return moved;
}

bool Proxy::run_lane(Lane& lane) {
  try {
    return lane.run(kTurn);
  } catch (const std::exception& failure) {
    fail_lane(lane, failure.what());
    return true;
  }
}

bool Proxy::finish_transfers() {
  completions_.clear();
  const bool moved = carrier_.progress(completions_);
  drop_given_up();  // before their last transfers come back as failures
  for (const Completion& completion : completions_) {
    Order& order = *reinterpret_cast<Order*>(completion.ticket);
    Lane& lane = *order.lane;
    // A lane that has failed already tells nothing new: windows opened since then are not concerned.
    if (!completion.failure.empty() && !lane.refuses(order.window->serial)) fail_lane(lane, completion.failure);
    lane.finish(order);
  }
  return moved || !completions_.empty();
}

void Proxy::fail_lane(Lane& lane, const std::string& why) {
  failures_.report(
      {lane.peer(), fmt::format("network ({}) to rank {}: {}", carrier_.provider().name, lane.peer(), why)});
  lane.fail(windows_.last_serial());
}

void Proxy::give_up(int peer, std::uint64_t last_serial) {
  const std::lock_guard lock(given_up_mutex_);
  given_up_.push_back({peer, last_serial});
  any_given_up_.store(true, std::memory_order_seq_cst);
}

void Proxy::drop_given_up() {
  if (!any_given_up_.load(std::memory_order_seq_cst)) return;
  const std::lock_guard lock(given_up_mutex_);
  for (const GivenUp& one : given_up_) {
    for (Stream& stream : streams_) {
      for (const auto& lane : stream.lanes) {
        if (lane && lane->peer() == one.peer) lane->fail(one.last_serial);
      }
      std::erase_if(stream.active, [](const Lane* lane) { return lane->empty(); });
    }
  }
  given_up_.clear();
  any_given_up_.store(false, std::memory_order_seq_cst);
}

void Proxy::publish_completed(Stream& stream) {
  std::uint64_t completed = stream.channel->ring().popped();
  std::erase_if(stream.active, [](const Lane* lane) { return lane->empty(); });
  for (const Lane* lane : stream.active) completed = std::min(completed, lane->oldest());
  if (completed == stream.completed) return;
  stream.completed = completed;
  stream.channel->set_completed(completed);
}

void Proxy::retire_windows() {
  for (std::size_t i = 0; i < streams_.size(); ++i) completed_[i] = streams_[i].completed;
  windows_.retire(completed_);
}

bool Proxy::work_waits() {
  const std::lock_guard lock(pass_mutex_);  // a helper may be popping
  CommandWords words;
  const auto has_command = [&](const Stream& stream) { return stream.channel->ring().front(words); };
  return stopping() || windows_.has_closing() || any_given_up_.load(std::memory_order_seq_cst) ||
         std::any_of(streams_.begin(), streams_.end(), has_command);
}

/// Whether transfers are on their way, and whether `watched_` says when to look again.
Proxy::Outlook Proxy::look_ahead() {
  const std::lock_guard lock(pass_mutex_);
  Outlook outlook;
  outlook.busy =
      std::any_of(streams_.begin(), streams_.end(), [](const Stream& stream) { return !stream.active.empty(); });
  outlook.soon = outlook.busy && carrier_.finishes_soon();
  outlook.must_look = outlook.busy || carrier_.must_be_driven();
  watched_.clear();
  outlook.can_watch = outlook.must_look && carrier_.prepare_sleep(watched_);
  return outlook;
}

void Proxy::back_off(int idle_passes) {
  if (idle_passes < kSpinPasses) return relax();
  if (idle_passes < kSpinPasses + kYieldPasses) return std::this_thread::yield();
  const std::uint64_t helps = helps_.load(std::memory_order_relaxed);
  if (std::exchange(helps_seen_, helps) != helps) return std::this_thread::sleep_for(kNapWhileHelped);
  const Outlook outlook = look_ahead();
  if (outlook.soon) return std::this_thread::yield();
  const bool quiet = !outlook.busy && idle_passes > kQuietAfterPasses;
  const auto has_work = [this] { return work_waits(); };
  if (!outlook.must_look) {
    bell_.sleep(kSleepAtMost, has_work);
  } else if (outlook.can_watch) {
    bell_.sleep(quiet ? kWatchWhileQuiet : kWatch, has_work, &watched_);
  } else if (quiet) {
    bell_.sleep(kNapWhileQuiet, has_work);
  } else {
    std::this_thread::sleep_for(kNapWhileBusy);
  }
}

}  // namespace ferry::net
