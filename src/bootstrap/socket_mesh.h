// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are processes of one machine: every pair is linked by a Unix socket.
#pragma once

#include <chrono>
#include <memory>

#include "bootstrap/mesh.h"
#include "ferry/meeting.h"

namespace ferry::bootstrap {

/// Collective; see make_mesh().
std::unique_ptr<Mesh> make_socket_mesh(Meeting& meeting, std::chrono::nanoseconds timeout);

}  // namespace ferry::bootstrap
