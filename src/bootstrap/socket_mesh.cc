// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The mesh of ranks that are processes of one machine.
#include "bootstrap/socket_mesh.h"

#include "bootstrap/failure.h"

namespace ferry::bootstrap {

std::unique_ptr<Mesh> make_socket_mesh(Meeting&, std::chrono::nanoseconds) {
  throw failure(ErrorCode::kUnsupported, "make_mesh: ranks as processes are not there yet; threads are (meet_in_process)");
}

}  // namespace ferry::bootstrap
