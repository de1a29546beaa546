// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The subcommands of `ferry`. Each lives in files of its own and, when it was asked for, leaves its exit code.
#pragma once

namespace ferry::app {

class Program;

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;    ///< the work was done and the result is bad, or it could not be done
constexpr int kExitBadUsage = 2;  ///< options that make no sense; nothing was done

void add_demo_command(Program& program, int& exit_code);
void add_plan_command(Program& program, int& exit_code);
void add_doctor_command(Program& program, int& exit_code);
void add_bench_command(Program& program, int& exit_code);
void add_netcheck_command(Program& program, int& exit_code);

}  // namespace ferry::app
