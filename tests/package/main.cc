// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A user's program: one rank alone, linked against the installed package.
#include <cstdio>

#include "ferry/ferry.h"

int main() {
  const ferry::Topology topology = ferry::Topology::split(8, 3);
  const auto meetings = ferry::meet_in_process(1);
  std::printf("ferry %s, topology %s, %d rank\n", ferry::version(), topology.describe().c_str(),
              meetings.front()->size());
  return topology.num_nodes() == 3 ? 0 : 1;
}
