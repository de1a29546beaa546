// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which compiled code runs on which GPU: machine code inside its major version and not below its minor one, PTX on anything
// newer.
#include <fmt/format.h>

#include <cctype>
#include <sstream>

#include "gpu_doctor.h"

namespace ferry::app {
namespace {

/// One word of CMAKE_CUDA_ARCHITECTURES.
struct Architecture {
  int version = 0;       ///< 90
  std::string suffix{};  ///< "a" or "f": for this architecture, or family, only
  bool has_code = true;  ///< machine code
  bool has_ptx = true;
};

Architecture parse(const std::string& word) {
  Architecture parsed;
  std::size_t at = 0;
  while (at < word.size() && std::isdigit(static_cast<unsigned char>(word[at])) != 0)
    parsed.version = parsed.version * 10 + (word[at++] - '0');
  while (at < word.size() && word[at] != '-') parsed.suffix += word[at++];
  parsed.has_code = word.substr(at) != "-virtual";
  parsed.has_ptx = word.substr(at) != "-real";
  return parsed;
}

bool code_runs(const Architecture& built, int gpu) {
  if (!built.has_code || built.version == 0) return false;
  if (built.suffix == "a") return built.version == gpu;
  return built.version / 10 == gpu / 10 && built.version <= gpu;
}

bool ptx_runs(const Architecture& built, int gpu) {
  return built.has_ptx && built.version != 0 && built.suffix.empty() && built.version <= gpu;
}

}  // namespace

std::string code_for_gpu(const std::string& architectures, int major, int minor) {
  const int gpu = major * 10 + minor;
  std::string best;
  std::istringstream words(architectures);
  for (std::string word; std::getline(words, word, ',');) {
    const Architecture built = parse(word);
    if (code_runs(built, gpu)) return fmt::format("sm_{}{} code", built.version, built.suffix);
    if (built.version == 0) best = fmt::format("code for '{}', whatever CMake made of that word", word);
    if (ptx_runs(built, gpu)) {
      best = fmt::format("PTX for {}.{}, compiled by the driver when it is loaded", built.version / 10,
                         built.version % 10);
    }
  }
  return best;
}

}  // namespace ferry::app
