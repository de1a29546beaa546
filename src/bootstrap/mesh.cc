// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Makes the mesh that fits: in-process queues for ranks that share a hub, Unix sockets for processes of one machine.
#include "bootstrap/mesh.h"

#include "bootstrap/hub.h"
#include "bootstrap/local_mesh.h"
#include "bootstrap/socket_mesh.h"

namespace ferry {

std::vector<int> find_machines(Meeting& meeting, std::chrono::nanoseconds timeout) {
  if (meeting.hub()) return std::vector<int>(static_cast<std::size_t>(meeting.size()), 0);
  return bootstrap::find_machines_of_processes(meeting, timeout);
}

std::unique_ptr<Mesh> make_mesh(Meeting& meeting, std::chrono::nanoseconds timeout) {
  const std::shared_ptr<InProcessHub> hub = meeting.hub();
  if (!hub) return bootstrap::make_socket_mesh(meeting, timeout);
  std::unique_ptr<Mesh> mesh = bootstrap::make_local_mesh(hub->next_board(meeting.rank()), meeting.rank());
  meeting.all_gather({}, timeout);  // nobody goes on before everybody has a mesh
  return mesh;
}

}  // namespace ferry
