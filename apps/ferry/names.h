// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Words on the command line that stand for values, with checks whose messages say what was seen and what is expected.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ferry/types.h"
#include "ranks.h"
#include "wire.h"

namespace ferry::app {

/// The words an option takes and what they mean.
template <class Value>
using Words = std::vector<std::pair<std::string, Value>>;

template <class Value>
std::string list_words(const Words<Value>& words) {
  std::string list;
  for (const auto& [word, value] : words) list += (list.empty() ? "" : "|") + word;
  return list;
}

/// An option that takes one of `words`. CLI11 puts the option's name in front of what a check says.
template <class Value, class Target>
CLI::Option* add_word(CLI::App& app, const std::string& option, Target& target, const Words<Value>& words,
                      const std::string& help) {
  return app
      .add_option_function<std::string>(
          option,
          [&target, words](const std::string& seen) {
            for (const auto& [word, value] : words) {
              if (word == seen) target = value;
            }
          },
          help)
      ->check(CLI::Validator(
          [words](std::string& seen) {
            for (const auto& [word, value] : words) {
              if (word == seen) return std::string();
            }
            return fmt::format("'{}' given, expected one of {}", seen, list_words(words));
          },
          ""))
      ->type_name(list_words(words));
}

/// An option that takes a whole number in a range.
template <class Target>
CLI::Option* add_number(CLI::App& app, const std::string& option, Target& target, std::int64_t low, std::int64_t high,
                        const std::string& help) {
  return app.add_option(option, target, help)
      ->capture_default_str()
      ->check(CLI::Validator(
          [low, high](std::string& seen) {
            std::size_t used = 0;
            std::int64_t value = 0;
            try {
              value = std::stoll(seen, &used);
            } catch (const std::exception&) {
              used = 0;
            }
            if (used == 0 || used != seen.size() || value < low || value > high) {
              return fmt::format("'{}' given, expected a whole number from {} to {}", seen, low, high);
            }
            return std::string();
          },
          ""))
      ->type_name("N");
}

inline Words<Mode> mode_words() {
  return {{"throughput", Mode::kThroughput}, {"latency", Mode::kLatency}};
}
inline Words<Layout> layout_words() {
  return {{"rank_major", Layout::kRankMajor},
          {"expert_major", Layout::kExpertMajor},
          {"expert_padded", Layout::kExpertPadded}};
}
inline Words<Reduction> reduction_words() {
  return {{"flat", Reduction::flat()}, {"per_rank", Reduction::per_rank()}, {"per_node", Reduction::per_node()}};
}
inline Words<Wire> wire_words() {
  const Wire bf16{"bf16", DType::kBf16, Codec::kNone};
  const Wire fp8{"fp8_f32", DType::kBf16, Codec::kFp8F32};
  return {{"bf16", bf16},
          {"none", bf16},
          {"fp16", {"fp16", DType::kFp16, Codec::kNone}},
          {"fp32", {"fp32", DType::kFp32, Codec::kNone}},
          {"fp8_f32", fp8},
          {"fp8", fp8},
          {"fp8_ue8m0", {"fp8_ue8m0", DType::kBf16, Codec::kFp8Ue8m0}}};
}
inline Words<RanksAs> ranks_as_words() {
  return {{"processes", RanksAs::kProcesses}, {"threads", RanksAs::kThreads}};
}

}  // namespace ferry::app
