// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Every float32 operation is done in double and rounded once, which gives the same bits (double has more than twice the digits).
#include "support/logfmt.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace ferry::test {
namespace {

constexpr double kUnit = 8388608.0;  // 2^23: logarithms are counted in parts of it

double round32(double value) {
  return static_cast<double>(static_cast<float>(value));
}

/// The whole part of a correction that vanishes at both ends of an octave, in units.
double correction(double f, const std::vector<float>& falling) {
  double curve = static_cast<double>(falling[0]);
  for (std::size_t i = 1; i < falling.size(); ++i)
    curve = round32(round32(curve * f) + static_cast<double>(falling[i]));
  const double product = round32(round32(f * round32(1 - f)) * curve);
  return std::floor(round32(product * kUnit + 0.5));
}

/// (127 + log2 x) in units, of a positive normal number. Below, octave 0 is counted evenly.
double logarithm(double x) {
  const int octave = std::max(std::ilogb(x), -127);
  const double f = octave == -127 ? std::ldexp(x, 126) : std::ldexp(x, -octave) - 1;
  return (octave + 127 + f) * kUnit +
         correction(f, {-0.015199201f, 0.06329968f, -0.12967801f, 0.1954248f, -0.27788547f, 0.4426663f});
}
double power(double log) {
  const double octave = std::floor(log / kUnit), f = log / kUnit - octave;
  const double mantissa = 1 + f - correction(f, {0.0018968501f, 0.0108446f, 0.0666999f, 0.306847f}) / kUnit;
  return std::ldexp(mantissa, static_cast<int>(octave) - 127);
}

struct Group {
  float* begin;
  float* end;
  double largest = 0, least = HUGE_VAL;  // magnitudes; the least that is not 0
  bool fits = true;

  Group(float* first, float* last) : begin(first), end(last) {
    for (const float* x = first; x != last; ++x) {
      const double size = std::fabs(static_cast<double>(*x));
      if (!std::isfinite(size)) fits = false;
      largest = std::max(largest, size);
      if (size > 0) least = std::min(least, size);
    }
    if (largest >= 1 || (largest > 0 && (largest < 0x1p-94 || least == largest))) fits = false;
  }

  void restore() const {
    if (largest == 0) return;
    const double top = logarithm(largest), bottom = std::max(logarithm(least), top - 32 * kUnit);
    const double span = round32(top - bottom), step = round32(span / 510), steps_per_unit = round32(510 / span);
    for (float* x = begin; x != end; ++x) {
      if (*x == 0) continue;
      const double above = round32(logarithm(std::fabs(static_cast<double>(*x))) - bottom);
      const double code = std::max(0.0, std::trunc(round32(round32(above * steps_per_unit) + 1.5)));
      const double offset = std::floor(round32(round32((code - 1) * step) + 0.5));
      const double size = code == 0 ? 0 : power(bottom + offset);
      *x = std::copysign(static_cast<float>(size), *x);
    }
  }
};

}  // namespace

std::vector<float> through_logfmt(std::vector<float> row) {
  constexpr std::size_t kChunk = 768, kGroup = 128;
  for (std::size_t chunk = 0; chunk < row.size(); chunk += kChunk) {
    std::vector<Group> groups;
    const std::size_t end = std::min(row.size(), chunk + kChunk);
    for (std::size_t at = chunk; at < end; at += kGroup)
      groups.emplace_back(row.data() + at, row.data() + std::min(end, at + kGroup));
    if (!std::all_of(groups.begin(), groups.end(), [](const Group& group) { return group.fits; })) continue;
    for (const Group& group : groups) group.restore();
  }
  return row;
}

}  // namespace ferry::test
