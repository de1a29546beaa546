// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The program `ferry`.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "commands.h"
#include "ferry/capability.h"
#include "options.h"

int main(int argc, char** argv) {
  using namespace ferry::app;
  // What libfabric's tcp reads ahead it copies again; its 9000 bytes cost a third of the time of rows of 14 KiB (docs/network.md).
  // Before there is any thread; what the user has set stays.
  ::setenv("FI_TCP_PREFETCH_RBUF_SIZE", "1024", 0);
  Program program("Ferry moves tokens to their experts and back: dispatch and combine for mixture-of-experts layers.",
                  "ferry", ferry::version());
  int exit_code = kExitOk;
  add_demo_command(program, exit_code);
  add_plan_command(program, exit_code);
  add_bench_command(program, exit_code);
  add_doctor_command(program, exit_code);
  add_netcheck_command(program, exit_code);
  try {
    if (const auto ended = program.parse(argc, argv)) return *ended == 0 ? kExitOk : kExitBadUsage;
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "ferry: {}\n", error.what());
    return kExitFailed;
  }
  return exit_code;
}
