// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The option --json FILE of every subcommand.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ferry::app {

/// A file that cannot be written is refused before the work, not after it.
inline CLI::Option* add_json_file(CLI::App& app, std::string& path, const std::string& help) {
  return app.add_option("--json", path, help)
      ->type_name("FILE")
      ->check(CLI::Validator(
          [](std::string& seen) {
            if (std::ofstream(seen, std::ios::app)) return std::string();
            return fmt::format("cannot write '{}', expected a file that can be written", seen);
          },
          ""));
}

/// Replaces what the file holds; nothing if the option was not given.
inline void write_json_file(const std::string& path, std::string_view json) {
  if (path.empty()) return;
  std::ofstream file(path);
  file << json << '\n';
  file.close();
  if (!file)
    throw std::runtime_error(fmt::format("--json: cannot write '{}', expected a file that can be written", path));
}

}  // namespace ferry::app
