// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are processes: a pair of one machine is linked by a Unix socket, any other by TCP.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "bootstrap/mesh.h"
#include "ferry/meeting.h"

namespace ferry::bootstrap {

/// Collective; see find_machines() and make_mesh().
std::vector<int> find_machines_of_processes(Meeting& meeting, std::chrono::nanoseconds timeout);
std::unique_ptr<Mesh> make_socket_mesh(Meeting& meeting, std::chrono::nanoseconds timeout);

}  // namespace ferry::bootstrap
