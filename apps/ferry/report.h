// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the demo says: tables, bars, differences; on the terminal and as JSON.
#pragma once

#include <string>
#include <vector>

#include "demo_options.h"
#include "layer.h"
#include "reference.h"

namespace ferry::app {

/// A case after all ranks have answered: by rank.
struct CaseRun {
  DemoCase run;
  std::vector<LayerResult> ranks;
};

/// One quantity of a case compared with the reference of one process.
struct Difference {
  std::string what;
  std::int64_t count = 0;        ///< numbers compared
  std::int64_t unequal = 0;      ///< with different bits (two NaN are equal)
  double largest = 0;            ///< largest distance; NaN against a number counts as infinite
  double to_exact = 0;           ///< largest distance to float64
  double to_exact_relative = 0;  ///< norm of the distance over the norm of the float64 values
  bool has_exact = true;
};
std::vector<Difference> compare(const CaseRun& run, const ReferenceResult& reference, const ExactResult& exact);

/// Empty if all is equal, else one sentence about the first thing that is not.
std::string first_difference(const DemoCase& run, const std::vector<Difference>& differences);

struct DemoReport {
  DemoOptions options;
  std::vector<std::string> skipped;
  std::vector<CaseRun> cases;
  std::vector<std::vector<Difference>> differences;  ///< by case; empty if it did not come to that
  std::string failure;                               ///< empty: verified
  std::size_t text_bytes = 0;
  double seconds = 0;
};
void print_header(const DemoReport& report);
void print_steps(const CaseRun& run);
void print_load(const DemoReport& report);
void print_differences(const DemoReport& report);
/// Everything, as one JSON text.
std::string to_json(const DemoReport& report);

}  // namespace ferry::app
