// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Cases drawn at random. Test i runs the cases of seeds i * kCasesPerTest onwards; a failure prints the seed and the case.
// For more cases, raise kTests; to see one again, name its test: --gtest_filter='*Generated*/17'.
#include <gtest/gtest.h>

#include "support/runner.h"

namespace ferry::test {
namespace {

constexpr int kTests = 30;
constexpr int kCasesPerTest = 10;

class Generated : public testing::TestWithParam<int> {};

TEST_P(Generated, MatchesTheReference) {
  for (int i = 0; i < kCasesPerTest; ++i) {
    const auto seed = static_cast<std::uint64_t>(GetParam() * kCasesPerTest + i);
    try {
      run_case(draw_case(seed));
    } catch (const Failure& failure) {
      FAIL() << failure.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Generated, testing::Range(0, kTests));

}  // namespace
}  // namespace ferry::test
