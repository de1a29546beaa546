// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The only file that knows CLI11.
#include "options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>

namespace ferry::app {
namespace {

/// Empty, or what is wrong with a whole number. CLI11 puts the option's name in front of what a check says.
std::string check_number(const std::string& seen, std::int64_t low, std::int64_t high) {
  std::size_t used = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(seen, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != 0 && used == seen.size() && value >= low && value <= high) return {};
  return fmt::format("'{}' given, expected a whole number from {} to {}", seen, low, high);
}

template <class Target>
void add_number(CLI::App& app, const std::string& option, Target& target, std::int64_t low, std::int64_t high,
                const std::string& help) {
  app.add_option(option, target, help)
      ->capture_default_str()
      ->check(CLI::Validator([low, high](std::string& seen) { return check_number(seen, low, high); }, ""))
      ->type_name("N");
}

}  // namespace

void Options::value(const std::string& option, std::string& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str();
}

void Options::value(const std::string& option, int& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str();
}

void Options::value(const std::string& option, std::int64_t& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str();
}

void Options::value(const std::string& option, std::uint64_t& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str();
}

void Options::value(const std::string& option, double& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str();
}

void Options::values(const std::string& option, std::vector<int>& target, const std::string& help) {
  app_->add_option(option, target, help)->delimiter(',')->capture_default_str();
}

void Options::values(const std::string& option, std::vector<std::int64_t>& target, const std::string& help) {
  app_->add_option(option, target, help)->delimiter(',')->capture_default_str();
}

void Options::values(const std::string& option, std::vector<std::string>& target, const std::string& help) {
  app_->add_option(option, target, help)->delimiter(',')->capture_default_str();
}

void Options::number(const std::string& option, int& target, std::int64_t low, std::int64_t high,
                     const std::string& help) {
  add_number(*app_, option, target, low, high, help);
}

void Options::number(const std::string& option, std::int64_t& target, std::int64_t low, std::int64_t high,
                     const std::string& help) {
  add_number(*app_, option, target, low, high, help);
}

void Options::number(const std::string& option, std::uint64_t& target, std::int64_t low, std::int64_t high,
                     const std::string& help) {
  add_number(*app_, option, target, low, high, help);
}

void Options::one_of(const std::string& option, const std::vector<std::string>& words,
                     const std::function<void(std::size_t)>& choose, const std::string& help) {
  const auto find = [words](const std::string& seen) {
    return static_cast<std::size_t>(std::find(words.begin(), words.end(), seen) - words.begin());
  };
  const std::string list = fmt::format("{}", fmt::join(words, "|"));
  app_->add_option_function<std::string>(
          option, [find, choose](const std::string& seen) { choose(find(seen)); }, help)
      ->check(CLI::Validator(
          [find, list, num_words = words.size()](std::string& seen) {
            if (find(seen) < num_words) return std::string();
            return fmt::format("'{}' given, expected one of {}", seen, list);
          },
          ""))
      ->type_name(list);
}

void Options::some_of(const std::string& option, std::vector<std::string>& target,
                      const std::vector<std::string>& words, const std::string& help) {
  app_->add_option(option, target, help)->delimiter(',')->check(CLI::IsMember(words))->capture_default_str();
}

void Options::seconds(const std::string& option, double& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str()->check(CLI::Range(0.1, 86400.0))->type_name("SECONDS");
}

void Options::file(const std::string& option, std::string& target, const std::string& help) {
  app_->add_option(option, target, help)->capture_default_str()->type_name("FILE");
}

void Options::json_file(std::string& path, const std::string& help) {
  app_->add_option("--json", path, help)
      ->type_name("FILE")
      ->check(CLI::Validator(
          [](std::string& seen) {
            if (std::ofstream(seen, std::ios::app)) return std::string();
            return fmt::format("cannot write '{}', expected a file that can be written", seen);
          },
          ""));
}

Program::Program(const std::string& description, const std::string& name, const std::string& version)
    : app_(std::make_unique<CLI::App>(description)) {
  if (!name.empty()) app_->name(name);
  if (!version.empty()) app_->set_version_flag("--version", fmt::format("{} {}", name, version));
}

Program::~Program() = default;

Options Program::command(const std::string& name, const std::string& help, const std::function<void()>& run) {
  app_->require_subcommand(1);
  CLI::App* const command = app_->add_subcommand(name, help);
  command->callback(run);
  return Options(*command);
}

std::optional<int> Program::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return app_->exit(error);
  }
}

std::optional<int> Program::parse_quietly(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code();
  }
}

}  // namespace ferry::app
