// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are threads of one process.
#include "bootstrap/local_mesh.h"

#include <fmt/format.h>

#include <utility>

#include "bootstrap/failure.h"
#include "core/check.h"

namespace ferry::bootstrap {
namespace {

std::size_t index(int rank) {
  return static_cast<std::size_t>(rank);
}

class LocalMesh final : public Mesh {
 public:
  LocalMesh(std::shared_ptr<LocalBoard> board, int rank) : board_(std::move(board)), rank_(rank) {}
  LocalMesh(const LocalMesh&) = delete;
  LocalMesh& operator=(const LocalMesh&) = delete;
  ~LocalMesh() override { board_->close(rank_); }

  std::shared_ptr<Memory> allocate(std::size_t bytes) override { return Memory::anonymous(bytes); }
  void send(int peer, const Notice& notice) override {
    check("ferry::Mesh::send", peer);
    board_->post(rank_, peer, notice);
  }
  std::optional<Notice> poll(int peer) override {
    check("ferry::Mesh::poll", peer);
    return board_->take(peer, rank_);
  }
  bool gone(int peer) override {
    check("ferry::Mesh::gone", peer);
    return board_->finished(peer, rank_);
  }

 private:
  void check(const char* function, int peer) const {
    if (peer >= 0 && peer < board_->size()) return;
    refuse(function, "peer", fmt::format("{}", peer), fmt::format("0 to {}", board_->size() - 1));
  }

  std::shared_ptr<LocalBoard> board_;
  int rank_;
};

}  // namespace

LocalBoard::LocalBoard(int size) : closed_(index(size)) {
  for (int rank = 0; rank < size; ++rank) {
    inboxes_.push_back(std::make_unique<Inbox>());
    inboxes_.back()->from.resize(index(size));
  }
}

void LocalBoard::post(int from, int to, const Notice& notice) {
  Notice copy = notice;  // outside the lock: it may be long
  Inbox& inbox = *inboxes_[index(to)];
  const std::lock_guard lock(inbox.mutex);
  if (!inbox.closed) inbox.from[index(from)].push_back(std::move(copy));
}

std::optional<Notice> LocalBoard::take(int from, int to) {
  Inbox& inbox = *inboxes_[index(to)];
  const std::lock_guard lock(inbox.mutex);
  std::deque<Notice>& queue = inbox.from[index(from)];
  if (queue.empty()) return std::nullopt;
  std::optional<Notice> notice(std::move(queue.front()));
  queue.pop_front();
  return notice;
}

bool LocalBoard::finished(int from, int to) {
  // Closing comes after the last post, so a queue that is empty after this load stays empty.
  if (!closed_[index(from)].load(std::memory_order_acquire)) return false;
  Inbox& inbox = *inboxes_[index(to)];
  const std::lock_guard lock(inbox.mutex);
  return inbox.from[index(from)].empty();
}

void LocalBoard::close(int rank) {
  closed_[index(rank)].store(true, std::memory_order_release);
  std::vector<std::deque<Notice>> dropped;  // freed outside the lock: notices may hold the last reference to a window
  Inbox& inbox = *inboxes_[index(rank)];
  const std::lock_guard lock(inbox.mutex);
  inbox.closed = true;
  dropped.swap(inbox.from);
  inbox.from.resize(dropped.size());
}

std::unique_ptr<Mesh> make_local_mesh(std::shared_ptr<LocalBoard> board, int rank) {
  return std::make_unique<LocalMesh>(std::move(board), rank);
}

}  // namespace ferry::bootstrap
