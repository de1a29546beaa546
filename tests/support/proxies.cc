// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/proxies.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>

namespace ferry::test {
namespace {

std::atomic<int> stalled{0};

void stand_still(int) {
  ++stalled;
  const timespec time{.tv_sec = kProxyStall.count(), .tv_nsec = 0};
  ::nanosleep(&time, nullptr);
}

}  // namespace

int stall_proxies() {
  stalled = 0;
  struct sigaction action {};
  action.sa_handler = stand_still;
  ::sigaction(SIGPROF, &action, nullptr);
  int found = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    file >> name;
    if (name != "ferry-proxy") continue;
    ::syscall(SYS_tgkill, ::getpid(), std::stoi(task.path().filename()), SIGPROF);
    ++found;
  }
  return found;
}

int stalled_proxies() {
  return stalled;
}

}  // namespace ferry::test
