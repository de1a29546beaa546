// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Writes what the option --json FILE of every command asks for.
#pragma once

#include <fmt/format.h>

#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ferry::app {

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
