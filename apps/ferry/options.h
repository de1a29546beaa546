// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Options on the command line, with checks whose messages say what was seen and what is expected. The parser, CLI11, stays in
// options.cc: every file that includes its headers pays for them with seven seconds of compiling.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace CLI {  // NOLINT(readability-identifier-naming): the parser's own name
class App;
}

namespace ferry::app {

/// The words an option takes and what they mean.
template <class Value>
using Words = std::vector<std::pair<std::string, Value>>;

/// The options of one command. Targets hold the defaults, and must live until the program has been run.
class Options {
 public:
  explicit Options(CLI::App& app) : app_(&app) {}

  /// Any value of the target's type.
  void value(const std::string& option, std::string& target, const std::string& help);
  void value(const std::string& option, int& target, const std::string& help);
  void value(const std::string& option, std::int64_t& target, const std::string& help);
  void value(const std::string& option, std::uint64_t& target, const std::string& help);
  void value(const std::string& option, double& target, const std::string& help);
  /// Several, with commas between them.
  void values(const std::string& option, std::vector<int>& target, const std::string& help);
  void values(const std::string& option, std::vector<std::int64_t>& target, const std::string& help);
  void values(const std::string& option, std::vector<std::string>& target, const std::string& help);

  /// A whole number in a range.
  void number(const std::string& option, int& target, std::int64_t low, std::int64_t high, const std::string& help);
  void number(const std::string& option, std::int64_t& target, std::int64_t low, std::int64_t high,
              const std::string& help);
  void number(const std::string& option, std::uint64_t& target, std::int64_t low, std::int64_t high,
              const std::string& help);

  /// One of `words`.
  template <class Value, class Target>
  void word(const std::string& option, Target& target, const Words<Value>& words, const std::string& help) {
    std::vector<std::string> names;
    for (const auto& [name, meaning] : words) names.push_back(name);
    one_of(
        option, names, [&target, words](std::size_t chosen) { target = words[chosen].second; }, help);
  }

  /// Some of `words`, with commas between them.
  void some_of(const std::string& option, std::vector<std::string>& target, const std::vector<std::string>& words,
               const std::string& help);

  /// Seconds that a wait may take.
  void seconds(const std::string& option, double& target, const std::string& help);

  void file(const std::string& option, std::string& target, const std::string& help);

  /// --json FILE. A file that cannot be written is refused before the work, not after it.
  void json_file(std::string& path, const std::string& help);

 private:
  void one_of(const std::string& option, const std::vector<std::string>& words,
              const std::function<void(std::size_t)>& choose, const std::string& help);

  CLI::App* app_;
};

/// A program: its options, or its commands with theirs.
class Program {
 public:
  /// With a name and a version, --version is an option; without, the program is called as its file is.
  explicit Program(const std::string& description, const std::string& name = {}, const std::string& version = {});
  ~Program();

  Options options() { return Options(*app_); }
  /// A command; parse() calls `run` when it was asked for. A program with commands demands one.
  Options command(const std::string& name, const std::string& help, const std::function<void()>& run);

  /// What the program ends with when there is nothing to go on with: 0 after --help and --version, above 0 after options that
  /// make no sense. What is wrong was printed then. What a command throws goes through.
  std::optional<int> parse(int argc, char** argv);
  /// The same without a word, for the ranks of a program that need not all say it.
  std::optional<int> parse_quietly(int argc, char** argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace ferry::app
