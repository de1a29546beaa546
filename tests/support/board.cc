// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/board.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <chrono>
#include <new>
#include <thread>

#include "support/spawn.h"

namespace ferry::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGatePatience{40};

}  // namespace

Board::Board() {
  void* memory = ::mmap(nullptr, sizeof(Gates), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Failure("mmap of the board failed");
  gates_ = new (memory) Gates{};
}

Board::~Board() {
  ::munmap(gates_, sizeof(Gates));
}

void Board::arrive(int gate) {
  gates_->at(static_cast<std::size_t>(gate)).fetch_add(1);
}

int Board::arrived(int gate) const {
  return gates_->at(static_cast<std::size_t>(gate)).load();
}

void Board::wait_for(int gate, int count) const {
  const auto end = Clock::now() + kGatePatience;
  while (arrived(gate) < count) {
    if (Clock::now() > end) throw Failure(fmt::format("gate {}: {} came, expected {}", gate, arrived(gate), count));
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace ferry::test
