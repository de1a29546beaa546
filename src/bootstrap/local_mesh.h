// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are threads of one process: queues of notices, memory passed as pointers.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "bootstrap/mesh.h"

namespace ferry::bootstrap {

/// The letter boxes of one group. Shared by the meshes of its ranks; lives as long as the last of them.
class LocalBoard {
 public:
  explicit LocalBoard(int size);

  int size() const noexcept { return static_cast<int>(inboxes_.size()); }
  void post(int from, int to, const Notice& notice);
  std::optional<Notice> take(int from, int to);
  /// True once `from` has closed and `to` has taken everything that came from it.
  bool finished(int from, int to);
  /// The rank neither sends nor receives any more; what it had not taken is dropped.
  void close(int rank);

 private:
  struct Inbox {
    std::mutex mutex;
    bool closed = false;
    std::vector<std::deque<Notice>> from;
  };
  std::vector<std::unique_ptr<Inbox>> inboxes_;
  std::vector<std::atomic<bool>> closed_;
};

std::unique_ptr<Mesh> make_local_mesh(std::shared_ptr<LocalBoard> board, int rank);

}  // namespace ferry::bootstrap
