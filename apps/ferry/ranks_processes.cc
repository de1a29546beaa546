// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as processes, forked from this program. Each has a socket pair to its parent; frames on it carry messages,
// barriers, failures and the all-gather that the parent plays for the ranks' meeting. The socket's end tells that a
// rank has died.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "ferry/error.h"
#include "ranks_internal.h"

namespace ferry::app {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

enum class FrameKind : std::uint32_t { kMessage, kGather, kFailed, kDone };
struct FrameHead {
  FrameKind kind = FrameKind::kMessage;
  std::uint32_t detail = 0;  ///< kFailed: the Blame
  std::uint64_t bytes = 0;
};

std::span<const std::byte> as_bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

[[noreturn]] void throw_errno(const char* what) {
  throw std::runtime_error(fmt::format("{}: {}", what, std::strerror(errno)));
}

void write_all(int socket, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) throw_errno("launcher: send");
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
}

void write_frame(int socket, FrameKind kind, std::uint32_t detail, std::span<const std::byte> body) {
  const FrameHead head{.kind = kind, .detail = detail, .bytes = body.size()};
  write_all(socket, std::as_bytes(std::span(&head, 1)));
  write_all(socket, body);
}

/// The rank then sees the network interfaces of that namespace alone, as it would on a machine of its own. Sockets that are open
/// stay what they are.
void enter_netns(const std::string& name) {
  const std::string path = "/run/netns/" + name;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int status = file < 0 ? -1 : ::setns(file, CLONE_NEWNET);
  if (status != 0) throw_errno(fmt::format("launcher: cannot enter network namespace {}", name).c_str());
  ::close(file);
}

/// A gather's answer: all ranks' bytes, each with its length in front.
Bytes join(const std::vector<Bytes>& parts) {
  Bytes joined;
  for (const Bytes& part : parts) {
    const std::uint64_t size = part.size();
    const auto head = std::as_bytes(std::span(&size, 1));
    joined.insert(joined.end(), head.begin(), head.end());
    joined.insert(joined.end(), part.begin(), part.end());
  }
  return joined;
}

std::vector<Bytes> part(std::span<const std::byte> joined) {
  std::vector<Bytes> parts;
  while (!joined.empty()) {
    std::uint64_t size = 0;
    std::memcpy(&size, joined.data(), sizeof(size));
    joined = joined.subspan(sizeof(size));
    parts.emplace_back(joined.begin(), joined.begin() + static_cast<std::ptrdiff_t>(size));
    joined = joined.subspan(size);
  }
  return parts;
}

/// The child's side.
class ProcessPort final : public RankPort {
 public:
  ProcessPort(int socket, int rank, int size, std::chrono::nanoseconds patience)
      : socket_(socket), rank_(rank), size_(size), patience_(patience) {
    meeting_ = meet_through(rank, size, [this](std::span<const std::byte> mine) { return gather(mine); });
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  Meeting& meeting() override { return *meeting_; }
  void send(std::span<const std::byte> message) override { write_frame(socket_, FrameKind::kMessage, 0, message); }
  void barrier() override { gather({}); }
  void set_stop(std::function<void()>) override {}

 private:
  std::vector<Bytes> gather(std::span<const std::byte> mine) {
    write_frame(socket_, FrameKind::kGather, 0, mine);
    const auto deadline = Clock::now() + patience_;
    FrameHead head;
    read_all(std::as_writable_bytes(std::span(&head, 1)), deadline);
    Bytes body(head.bytes);
    read_all(body, deadline);
    return part(body);
  }

  void read_all(std::span<std::byte> into, Clock::time_point deadline) {
    while (!into.empty()) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
      if (left <= 0) throw Error(ErrorCode::kTimeout, "launcher: the other ranks did not come to a gather in time");
      pollfd ready{.fd = socket_, .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, static_cast<int>(left)) < 0 && errno != EINTR) throw_errno("launcher: poll");
      if (ready.revents == 0) continue;
      const ssize_t got = ::recv(socket_, into.data(), into.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw_errno("launcher: recv");
      if (got == 0) throw std::runtime_error("launcher: the program that started this rank is gone");
      into = into.subspan(static_cast<std::size_t>(got));
    }
  }

  int socket_;
  int rank_;
  int size_;
  std::chrono::nanoseconds patience_;
  std::unique_ptr<Meeting> meeting_;
};

[[noreturn]] void run_child(int socket, int rank, const Launch& launch, const std::function<void(RankPort&)>& body,
                            pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // it died before the line above
  int status = 0;
  try {
    if (!launch.netns.empty()) enter_netns(launch.netns[static_cast<std::size_t>(rank)]);
    // The parent gives up first, because it knows who is missing.
    ProcessPort port(socket, rank, launch.num_ranks, launch.silence_limit + std::chrono::seconds(30));
    try {
      body(port);
      write_frame(socket, FrameKind::kDone, 0, {});
    } catch (...) {
      status = 1;
      const BlamedFailure failure = describe_exception(rank, std::current_exception());
      write_frame(socket, FrameKind::kFailed, static_cast<std::uint32_t>(failure.blame),
                  as_bytes_of(failure.failure.reason));
    }
  } catch (...) {
    status = 1;  // the parent sees the socket's end
  }
  ::fflush(stderr);
  ::_exit(status);
}

struct Child {
  pid_t pid = -1;
  int socket = -1;
  Bytes received;
  std::optional<Bytes> gathering;
  bool done = false;    ///< it said that it is, or that it failed
  bool killed = false;  ///< by us
  Clock::time_point last_sign = Clock::now();
};

/// The parent's side: all children, killed and waited for on every way out.
class Children {
 public:
  explicit Children(const Launch& launch) : launch_(launch), children_(static_cast<std::size_t>(launch.num_ranks)) {}
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children() {
    kill_all();
    for (Child& child : children_) {
      if (child.socket >= 0) ::close(child.socket);
      if (child.pid > 0) ::waitpid(child.pid, nullptr, 0);
    }
  }

  void start(const std::function<void(RankPort&)>& body) {
    // What is still buffered would otherwise be printed by every child as well.
    std::fflush(stdout);
    std::fflush(stderr);
    const pid_t parent = ::getpid();
    for (int rank = 0; rank < launch_.num_ranks; ++rank) {
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw_errno("launcher: socketpair");
      const pid_t pid = ::fork();
      if (pid == 0) {
        for (const Child& other : children_) {
          if (other.socket >= 0) ::close(other.socket);
        }
        ::close(ends[0]);
        run_child(ends[1], rank, launch_, body, parent);
      }
      ::close(ends[1]);
      Child& child = children_[static_cast<std::size_t>(rank)];
      child.socket = ends[0];
      child.pid = pid;
      if (pid < 0) throw_errno("launcher: fork");
      // A stopped rank must not stop the parent when its buffer is full.
      const timeval limit{.tv_sec = 5, .tv_usec = 0};
      ::setsockopt(child.socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    }
  }

  std::optional<RunFailure> watch() {
    std::optional<Clock::time_point> stop_at;
    while (any_open()) {
      poll_once();
      const auto now = Clock::now();
      if (!failure_) check_silence(now);
      if (failure_ && !stop_at) stop_at = now + kGrace;
      if (stop_at && now >= *stop_at) break;
    }
    if (!failure_) return std::nullopt;
    kill_all();
    return failure_->failure;
  }

 private:
  bool any_open() const {
    for (const Child& child : children_) {
      if (child.socket >= 0) return true;
    }
    return false;
  }

  void kill_all() {
    for (Child& child : children_) {
      if (child.pid <= 0) continue;
      child.killed = true;
      ::kill(child.pid,
             SIGKILL);  // also one that said it was done: it has nothing left to do, but could have been stopped
    }
  }

  /// Blames a rank that has been silent for too long: while others wait for it in a gather, or with everybody else.
  void check_silence(Clock::time_point now) {
    int silent = -1;
    int num_silent = 0;
    int num_open = 0;
    bool others_wait = false;
    for (std::size_t r = 0; r < children_.size(); ++r) {
      const Child& child = children_[r];
      if (child.socket < 0) continue;
      ++num_open;
      others_wait = others_wait || child.gathering.has_value();
      if (child.gathering || now - child.last_sign <= launch_.silence_limit) continue;
      ++num_silent;
      if (silent < 0) silent = static_cast<int>(r);
    }
    if (num_silent == 0 || (num_silent < num_open && !others_wait)) return;
    const auto seconds = std::chrono::duration<double>(launch_.silence_limit).count();
    const std::string others = num_silent > 1 ? fmt::format(" and {} more", num_silent - 1) : "";
    keep_worse(failure_,
               {{.rank = silent,
                 .reason = fmt::format("rank {}{} gave no sign of life for {:.0f} s", silent, others, seconds)},
                Blame::kOwnError});
  }

  /// Takes what has arrived.
  void poll_once() {
    std::vector<pollfd> ready;
    std::vector<int> ranks;
    for (std::size_t r = 0; r < children_.size(); ++r) {
      if (children_[r].socket < 0) continue;
      ready.push_back({.fd = children_[r].socket, .events = POLLIN, .revents = 0});
      ranks.push_back(static_cast<int>(r));
    }
    if (::poll(ready.data(), ready.size(), 100) <= 0) return;
    for (std::size_t i = 0; i < ready.size(); ++i) {
      if (ready[i].revents != 0) take(ranks[i]);
    }
  }

  void take(int rank) {
    Child& child = children_[static_cast<std::size_t>(rank)];
    std::byte buffer[65536];
    const ssize_t got = ::recv(child.socket, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return bury(rank);
    child.last_sign = Clock::now();
    child.received.insert(child.received.end(), buffer, buffer + got);
    std::size_t used = 0;
    FrameHead head;
    while (child.received.size() - used >= sizeof(head)) {
      std::memcpy(&head, child.received.data() + used, sizeof(head));
      if (child.received.size() - used - sizeof(head) < head.bytes) break;
      handle(rank, head, std::span(child.received).subspan(used + sizeof(head), head.bytes));
      used += sizeof(head) + head.bytes;
    }
    child.received.erase(child.received.begin(), child.received.begin() + static_cast<std::ptrdiff_t>(used));
  }

  void handle(int rank, const FrameHead& head, std::span<const std::byte> body) {
    Child& child = children_[static_cast<std::size_t>(rank)];
    switch (head.kind) {
      case FrameKind::kMessage:
        if (launch_.on_message) launch_.on_message(rank, body);
        break;
      case FrameKind::kGather:
        child.gathering = Bytes(body.begin(), body.end());
        answer_gather();
        break;
      case FrameKind::kFailed:
        child.done = true;
        keep_worse(failure_,
                   {{.rank = rank, .reason = std::string(reinterpret_cast<const char*>(body.data()), body.size())},
                    static_cast<Blame>(head.detail)});
        break;
      case FrameKind::kDone:
        child.done = true;
        break;
    }
  }

  void answer_gather() {
    std::vector<Bytes> parts;
    for (const Child& child : children_) {
      if (!child.gathering) return;
      parts.push_back(*child.gathering);
    }
    const Bytes joined = join(parts);
    for (Child& child : children_) {
      child.gathering.reset();
      child.last_sign = Clock::now();
      try {
        write_frame(child.socket, FrameKind::kGather, 0, joined);
      } catch (const std::runtime_error&) {
        // It died or was stopped; the socket's end or the watch over silence says so.
      }
    }
  }

  /// The socket ended: find out how the process did.
  void bury(int rank) {
    Child& child = children_[static_cast<std::size_t>(rank)];
    ::close(child.socket);
    child.socket = -1;
    if (child.done) return;
    int status = 0;
    ::waitpid(child.pid, &status, 0);
    child.pid = -1;
    if (child.killed) return;
    const std::string how =
        WIFSIGNALED(status)
            ? fmt::format("was killed by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)))
            : fmt::format("ended with status {} without an answer", WEXITSTATUS(status));
    keep_worse(failure_, {{.rank = rank, .reason = fmt::format("rank {} {}", rank, how)}, Blame::kDeath});
  }

  const Launch& launch_;
  std::vector<Child> children_;
  std::optional<BlamedFailure> failure_;
};

}  // namespace

std::optional<RunFailure> run_as_processes(const Launch& launch, const std::function<void(RankPort&)>& body) {
  Children children(launch);
  children.start(body);
  return children.watch();
}

}  // namespace ferry::app
