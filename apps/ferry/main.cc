// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The program `ferry`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "commands.h"
#include "ferry/capability.h"

int main(int argc, char** argv) {
  using namespace ferry::app;
  CLI::App app{"Ferry moves tokens to their experts and back: dispatch and combine for mixture-of-experts layers."};
  app.name("ferry");
  app.set_version_flag("--version", fmt::format("ferry {}", ferry::version()));
  app.require_subcommand(1);
  int exit_code = kExitOk;
  add_demo_command(app, exit_code);
  add_plan_command(app, exit_code);
  add_bench_command(app, exit_code);
  add_doctor_command(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitBadUsage;
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "ferry: {}\n", error.what());
    return kExitFailed;
  }
  return exit_code;
}
