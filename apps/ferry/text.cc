// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Reading and embedding of the text.
#include "text.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "numbers.h"

namespace ferry::app {

std::string read_text(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    throw std::runtime_error(fmt::format("--text: '{}' is a directory, expected a file to take bytes from", path));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  if (!file || file.bad()) {
    throw std::runtime_error(
        fmt::format("--text: cannot read '{}' ({}); expected a file to take bytes from, for example --text README.md",
                    path, std::strerror(errno != 0 ? errno : EIO)));
  }
  if (text.empty()) throw std::runtime_error(fmt::format("--text: '{}' is empty; expected at least one byte", path));
  return text;
}

std::vector<float> embed(const std::string& text, std::int64_t first, std::int64_t count, std::int64_t hidden,
                         DType dtype, std::uint64_t seed) {
  constexpr std::array<float, 4> kContext = {1.0f, 0.5f, 0.35f, 0.25f};
  constexpr float kPosition = 0.25f;
  const auto length = static_cast<std::int64_t>(text.size());
  std::vector<float> rows(static_cast<std::size_t>(count * hidden));
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t position = first + t;
    float* row = rows.data() + t * hidden;
    for (std::int64_t h = 0; h < hidden; ++h) {
      row[h] =
          kPosition * uniform(mix(seed, 256 + static_cast<std::uint64_t>(position)), static_cast<std::uint64_t>(h));
    }
    for (std::int64_t back = 0; back < static_cast<std::int64_t>(kContext.size()) && back <= position; ++back) {
      const auto byte = static_cast<unsigned char>(text[static_cast<std::size_t>((position - back) % length)]);
      const std::uint64_t stream = mix(seed + static_cast<std::uint64_t>(back), byte);
      for (std::int64_t h = 0; h < hidden; ++h) {
        row[h] += kContext[static_cast<std::size_t>(back)] * uniform(stream, static_cast<std::uint64_t>(h));
      }
    }
    for (std::int64_t h = 0; h < hidden; ++h) row[h] = round_to(dtype, row[h]);
  }
  return rows;
}

}  // namespace ferry::app
