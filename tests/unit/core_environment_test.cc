// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Environment variables: what is read, and how nonsense is refused.
#include "core/environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "ferry/error.h"

namespace ferry {
namespace {

using Variables = std::map<std::string, std::string>;

Environment read(const Variables& variables) {
  return Environment::read([&](const char* variable) -> const char* {
    const auto found = variables.find(variable);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Environment, NothingSetGivesDefaults) {
  const Environment environment = read({});
  EXPECT_FALSE(environment.rank.has_value());
  EXPECT_FALSE(environment.world_size.has_value());
  EXPECT_EQ(environment.master_addr, "127.0.0.1");
  EXPECT_FALSE(environment.meeting_port().has_value());
  EXPECT_EQ(environment.token, "");
  EXPECT_EQ(environment.log, "warning");
  EXPECT_FALSE(environment.test_delay_ns.has_value());
}

TEST(Environment, ReadsEverything) {
  const Environment environment = read({{"RANK", "3"},
                                        {"WORLD_SIZE", "8"},
                                        {"LOCAL_RANK", "1"},
                                        {"MASTER_ADDR", "::1"},
                                        {"MASTER_PORT", "29500"},
                                        {"FERRY_TOKEN", "secret"},
                                        {"FERRY_NODE_SIZE", "4"},
                                        {"FERRY_LOG", "debug"},
                                        {"FERRY_TEST_DELAY_NS", "5000"}});
  EXPECT_EQ(environment.rank, 3);
  EXPECT_EQ(environment.world_size, 8);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.master_addr, "::1");
  EXPECT_EQ(environment.meeting_port(), 29501);
  EXPECT_EQ(environment.token, "secret");
  EXPECT_EQ(environment.node_size, 4);
  EXPECT_EQ(environment.log, "debug");
  EXPECT_EQ(environment.test_delay_ns, 5000);
}

TEST(Environment, FerryPortComesFirst) {
  EXPECT_EQ(read({{"MASTER_PORT", "29500"}, {"FERRY_PORT", "4000"}}).meeting_port(), 4000);
}

TEST(Environment, EmptyIsUnset) {
  EXPECT_FALSE(read({{"RANK", ""}, {"FERRY_PORT", ""}}).ferry_port.has_value());
}

TEST(Environment, TheProcessCanBeRead) {
  EXPECT_NO_THROW(Environment::read());
}

struct Refusal {
  Variables variables;
  std::string argument;
  std::string seen;
};

class EnvironmentRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(EnvironmentRefuses, NamesTheVariableAndWhatItSaw) {
  const Refusal& refusal = GetParam();
  try {
    read(refusal.variables).meeting_port();
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.argument, refusal.argument);
    EXPECT_THAT(error.what(), testing::HasSubstr(refusal.argument));
    EXPECT_THAT(error.what(), testing::HasSubstr(refusal.seen));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, EnvironmentRefuses,
    testing::Values(Refusal{{{"RANK", "x"}, {"WORLD_SIZE", "2"}}, "RANK", "'x'"},
                    Refusal{{{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, "RANK", "'-1'"},
                    Refusal{{{"RANK", "2"}, {"WORLD_SIZE", "2"}}, "RANK", "'2'"},
                    Refusal{{{"RANK", "1 "}, {"WORLD_SIZE", "2"}}, "RANK", "'1 '"},
                    Refusal{{{"RANK", "0"}}, "WORLD_SIZE", "not set"},
                    Refusal{{{"WORLD_SIZE", "2"}}, "RANK", "not set"},
                    Refusal{{{"RANK", "0"}, {"WORLD_SIZE", "0"}}, "WORLD_SIZE", "'0'"},
                    Refusal{{{"RANK", "0"}, {"WORLD_SIZE", "99999999999999999999"}}, "WORLD_SIZE", "'9999"},
                    Refusal{{{"FERRY_PORT", "65536"}}, "FERRY_PORT", "'65536'"},
                    Refusal{{{"MASTER_PORT", "65535"}}, "MASTER_PORT", "65535"},
                    Refusal{{{"FERRY_NODE_SIZE", "0"}}, "FERRY_NODE_SIZE", "'0'"},
                    Refusal{{{"FERRY_LOG", "loud"}}, "FERRY_LOG", "'loud'"},
                    Refusal{{{"FERRY_TEST_DELAY_NS", "1e3"}}, "FERRY_TEST_DELAY_NS", "'1e3'"}));

}  // namespace
}  // namespace ferry
