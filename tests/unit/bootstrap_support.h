// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the bootstrap tests share: threads as ranks, bytes as text, errors as values.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bootstrap/fd.h"
#include "bootstrap/mesh.h"
#include "ferry/error.h"

namespace ferry::bootstrap_test {

inline std::vector<std::byte> as_bytes(std::string_view chars) {
  const auto* data = reinterpret_cast<const std::byte*>(chars.data());
  return {data, data + chars.size()};
}

inline std::string text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Runs `body(rank)` on one thread per rank and reports what they throw.
inline void on_threads(int size, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&body, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Runs `body`, expects an Error of this code, returns its message.
inline std::string expect_error(ErrorCode code, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

/// A TCP port of the loopback interface at which nobody listens. Another process could take it before it is used.
inline std::uint16_t free_port() {
  const bootstrap::Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t num_bytes = sizeof(address);
  if (bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &num_bytes) != 0) {
    throw std::runtime_error("no free port");
  }
  return ntohs(address.sin_port);
}

/// Starts a process that runs `body` and ends without running any of the test program's own clean-up. Exit code 0:
/// all well, 1: it threw, 2: a check failed. Not for use while other threads run.
inline pid_t start_process(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child != 0) return child;
  int code = 1;
  try {
    code = body() ? 0 : 2;
  } catch (const std::exception& error) {
    fprintf(stderr, "child: %s\n", error.what());
  }
  _exit(code);
}

/// What a process ended with: its exit code, or minus the signal.
inline int end_of(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) return -1000;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline Notice wait_for_notice(Mesh& mesh, int peer) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < deadline) {
    if (auto notice = mesh.poll(peer)) return *notice;
    std::this_thread::yield();
  }
  throw Error(ErrorCode::kTimeout, "no notice from rank " + std::to_string(peer));
}

inline bool wait_until_gone(Mesh& mesh, int peer) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < deadline) {
    if (mesh.gone(peer)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace ferry::bootstrap_test
