// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Threads or processes as ranks. Children report over pipes: one byte, 'r' returned or 't' threw, then text.
#include "support/spawn.h"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace ferry::test {
namespace {

using Clock = std::chrono::steady_clock;

std::string what_of_current_exception() {
  try {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "threw something that is no std::exception";
  }
}

[[noreturn]] void fail(const char* call) {
  throw std::system_error(errno, std::generic_category(), call);
}

/// Collects what goes wrong on the ranks.
class Failures {
 public:
  void add(int rank, const std::string& message) {
    const std::scoped_lock lock(mutex_);
    by_rank_.emplace_back(rank, message);
  }
  void raise() {
    if (by_rank_.empty()) return;
    std::stable_sort(by_rank_.begin(), by_rank_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string all;
    for (const auto& [rank, message] : by_rank_) all += "rank " + std::to_string(rank) + ": " + message + "\n";
    throw Failure(all);
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<int, std::string>> by_rank_;
};

void run_threads(int size, const std::function<void(Rank)>& body, std::chrono::seconds deadline) {
  auto meetings = meet_in_process(size);
  Failures failures;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> over(static_cast<std::size_t>(size), false);

  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body({rank, size, meetings[static_cast<std::size_t>(rank)].get()});
      } catch (...) {
        failures.add(rank, what_of_current_exception());
      }
      const std::scoped_lock lock(mutex);
      over[static_cast<std::size_t>(rank)] = true;
      changed.notify_all();
    });
  }
  {
    std::unique_lock lock(mutex);
    const auto all_over = [&] { return std::find(over.begin(), over.end(), false) == over.end(); };
    if (!changed.wait_until(lock, Clock::now() + deadline, all_over)) {
      std::fprintf(stderr, "ranks as threads: not over after %lld s:", static_cast<long long>(deadline.count()));
      for (int rank = 0; rank < size; ++rank) {
        if (!over[static_cast<std::size_t>(rank)]) std::fprintf(stderr, " %d", rank);
      }
      std::fprintf(stderr, "\n");
      try {
        failures.raise();
      } catch (const Failure& failure) {
        std::fprintf(stderr, "%s", failure.what());
      }
      std::_Exit(3);
    }
  }
  for (auto& thread : threads) thread.join();
  failures.raise();
}

void write_all(int fd, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // the parent is gone; nobody to tell
    done += static_cast<std::size_t>(n);
  }
}

[[noreturn]] void child_main(int rank, int size, std::uint16_t port, const std::function<std::string(Rank)>& body,
                             int report, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  std::string text;
  try {
    const auto meeting =
        meet_over_tcp({.rank = rank, .size = size, .port = port, .token = "test " + std::to_string(parent)});
    text = "r" + body({rank, size, meeting.get()});
  } catch (...) {
    text = "t" + what_of_current_exception();
  }
  write_all(report, text);
  ::_exit(0);
}

}  // namespace

const char* name(RanksAs ranks_as) {
  return ranks_as == RanksAs::kThreads ? "threads" : "processes";
}

void require(bool condition, const std::string& message) {
  if (!condition) throw Failure(message);
}

std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  const bool bound = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  ::close(fd);
  if (!bound) fail("bind");
  return ntohs(address.sin_port);
}

struct RankProcesses::Child {
  pid_t pid = -1;
  int report = -1;
  std::string text;
  bool closed = false;  // its pipe has ended
  bool reaped = false;
  bool killed_late = false;
  int status = 0;

  void read_some() {
    char buffer[4096];
    const ssize_t n = ::read(report, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) return;
    if (n > 0) {
      text.append(buffer, static_cast<std::size_t>(n));
    } else {
      closed = true;
    }
  }
  void reap() {
    if (reaped) return;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    reaped = true;
  }
  Outcome outcome() const {
    Outcome result;
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    if (killed_late) {
      result.text = "not over by the deadline; killed";
    } else if (!text.empty()) {
      result.returned = text[0] == 'r';
      result.text = text.substr(1);
    } else if (result.signal != 0) {
      result.text = std::string("ended by signal ") + ::strsignal(result.signal);
    } else {
      result.text = "ended without a word, status " + std::to_string(WEXITSTATUS(status));
    }
    return result;
  }
};

RankProcesses::RankProcesses(int size, const std::function<std::string(Rank)>& body) {
  const std::uint16_t port = free_port();
  const pid_t parent = ::getpid();
  std::fflush(nullptr);  // or children would write buffered output again
  for (int rank = 0; rank < size; ++rank) {
    int ends[2];
    if (::pipe(ends) != 0) fail("pipe");
    const pid_t pid = ::fork();
    if (pid < 0) fail("fork");
    if (pid == 0) {
      ::close(ends[0]);
      for (const auto& earlier : children_) ::close(earlier->report);
      child_main(rank, size, port, body, ends[1], parent);
    }
    ::close(ends[1]);
    auto child = std::make_unique<Child>();
    child->pid = pid;
    child->report = ends[0];
    children_.push_back(std::move(child));
  }
}

RankProcesses::~RankProcesses() {
  for (auto& child : children_) {
    if (!child->reaped) ::kill(child->pid, SIGKILL);
    child->reap();
    ::close(child->report);
  }
}

pid_t RankProcesses::pid(int rank) const {
  return children_.at(static_cast<std::size_t>(rank))->pid;
}

void RankProcesses::send_signal(int rank, int signal_number) {
  const auto& child = *children_.at(static_cast<std::size_t>(rank));
  if (!child.reaped) ::kill(child.pid, signal_number);
}

std::vector<RankProcesses::Outcome> RankProcesses::wait(std::chrono::seconds deadline, const std::vector<int>& ranks) {
  std::vector<Child*> wanted;
  for (int rank = 0; rank < static_cast<int>(children_.size()); ++rank) {
    if (ranks.empty() || std::find(ranks.begin(), ranks.end(), rank) != ranks.end())
      wanted.push_back(children_[static_cast<std::size_t>(rank)].get());
  }
  const auto end = Clock::now() + deadline;
  for (;;) {
    std::vector<pollfd> polls;
    std::vector<Child*> open;
    for (Child* child : wanted) {
      if (child->closed) continue;
      polls.push_back({.fd = child->report, .events = POLLIN, .revents = 0});
      open.push_back(child);
    }
    if (open.empty()) break;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    if (left <= 0) {
      for (Child* child : open) {
        child->killed_late = true;
        child->closed = true;
        ::kill(child->pid, SIGKILL);
      }
      break;
    }
    if (::poll(polls.data(), polls.size(), static_cast<int>(std::min<long long>(left, 1000))) < 0 && errno != EINTR)
      fail("poll");
    for (std::size_t i = 0; i < polls.size(); ++i) {
      if (polls[i].revents != 0) open[i]->read_some();
    }
  }
  std::vector<Outcome> outcomes;
  for (Child* child : wanted) {
    child->reap();
    outcomes.push_back(child->outcome());
  }
  return outcomes;
}

void run_ranks(int size, RanksAs ranks_as, const std::function<void(Rank)>& body, std::chrono::seconds deadline) {
  if (ranks_as == RanksAs::kThreads) return run_threads(size, body, deadline);
  RankProcesses processes(size, [&](Rank rank) {
    body(rank);
    return std::string();
  });
  const auto outcomes = processes.wait(deadline);
  Failures failures;
  for (int rank = 0; rank < size; ++rank) {
    const auto& outcome = outcomes[static_cast<std::size_t>(rank)];
    if (!outcome.returned) failures.add(rank, outcome.text);
  }
  failures.raise();
}

}  // namespace ferry::test
