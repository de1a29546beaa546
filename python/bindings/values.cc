// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Names to values, with the allowed names in every refusal.
#include "values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "errors.h"

namespace nb = nanobind;

namespace ferry::python {
namespace {

constexpr std::array kModes{Mode::kThroughput, Mode::kLatency, Mode::kAuto};
constexpr std::array kLayouts{Layout::kRankMajor, Layout::kExpertMajor, Layout::kExpertPadded};
constexpr std::array kCodecs{Codec::kNone, Codec::kFp8F32, Codec::kFp8Ue8m0, Codec::kLogfmt10};
constexpr std::array kOutputs{Output::kWindow, Output::kOwned};
constexpr std::array kDTypes{DType::kBf16,  DType::kFp16,  DType::kFp32,  DType::kFp8E4m3,
                             DType::kUe8m0, DType::kUint8, DType::kInt32, DType::kInt64};
constexpr std::array kGroups{Reduction::Group::kChoice, Reduction::Group::kRank, Reduction::Group::kNode};
constexpr std::array kOrders{Reduction::Order::kAscending, Reduction::Order::kLastChoice};
constexpr std::array kPresets{Reduction::flat(), Reduction::per_rank(), Reduction::per_node()};

struct Alias {
  std::string_view text;
  DType dtype;
};
constexpr std::array kDTypeAliases{
    Alias{"bfloat16", DType::kBf16},         Alias{"float16", DType::kFp16},         Alias{"float32", DType::kFp32},
    Alias{"float8_e4m3fn", DType::kFp8E4m3}, Alias{"float8_e8m0fnu", DType::kUe8m0},
};

template <typename Value>
std::optional<Value> find(std::string_view text, std::span<const Value> values) {
  using ferry::name;
  using ferry::python::name;
  for (Value value : values) {
    if (text == name(value)) return value;
  }
  return std::nullopt;
}

template <typename Value>
std::string list_names(std::span<const Value> values) {
  using ferry::name;
  using ferry::python::name;
  std::string names;
  for (Value value : values) names += (names.empty() ? "one of \"" : ", \"") + std::string(name(value)) + "\"";
  return names;
}

template <typename Value>
Value parse(const std::string& function, const std::string& argument, std::string_view text,
            std::span<const Value> values) {
  if (const auto found = find(text, values)) return *found;
  refuse(function, argument, "\"" + std::string(text) + "\"", list_names(values));
}

}  // namespace

const char* name(Reduction::Group group) noexcept {
  switch (group) {
    case Reduction::Group::kChoice:
      return "choice";
    case Reduction::Group::kRank:
      return "rank";
    case Reduction::Group::kNode:
      return "node";
  }
  return "?";
}

const char* name(Reduction::Order order) noexcept {
  return order == Reduction::Order::kAscending ? "ascending" : "last_choice";
}

Mode parse_mode(const std::string& function, std::string_view text) {
  return parse(function, "mode", text, std::span<const Mode>(kModes));
}

Layout parse_layout(const std::string& function, std::string_view text) {
  return parse(function, "layout", text, std::span<const Layout>(kLayouts));
}

Codec parse_codec(const std::string& function, std::string_view text) {
  return parse(function, "codec", text, std::span<const Codec>(kCodecs));
}

Output parse_output(const std::string& function, std::string_view text) {
  return parse(function, "output", text, std::span<const Output>(kOutputs));
}

std::optional<DType> find_dtype(std::string_view text) {
  for (const Alias& alias : kDTypeAliases) {
    if (text == alias.text) return alias.dtype;
  }
  return find(text, std::span<const DType>(kDTypes));
}

DType parse_dtype(const std::string& function, const std::string& argument, std::string_view text) {
  if (const auto found = find_dtype(text)) return *found;
  refuse(function, argument, "\"" + std::string(text) + "\"", list_names(std::span<const DType>(kDTypes)));
}

Reduction::Group parse_reduction_group(const std::string& function, std::string_view text) {
  return parse(function, "group", text, std::span<const Reduction::Group>(kGroups));
}

Reduction::Order parse_reduction_order(const std::string& function, std::string_view text) {
  return parse(function, "order", text, std::span<const Reduction::Order>(kOrders));
}

Reduction parse_reduction(const std::string& function, nb::handle value) {
  Reduction reduction;
  if (nb::try_cast<Reduction>(value, reduction)) return reduction;
  const std::span<const Reduction> presets(kPresets);
  if (PyUnicode_Check(value.ptr())) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value.ptr(), &length);
    if (text == nullptr) throw nb::python_error();
    return parse(function, "reduction", std::string_view(text, static_cast<std::size_t>(length)), presets);
  }
  refuse(function, "reduction", nb::type_name(value.type()).c_str(), "a ferry.Reduction or " + list_names(presets));
}

std::chrono::nanoseconds parse_timeout(const std::string& function, double seconds) {
  constexpr double kMostSeconds = 10 * 365.0 * 86400.0;
  if (!(seconds > 0) || seconds > kMostSeconds) {
    refuse(function, "timeout", std::to_string(seconds) + " seconds", "more than 0 and at most ten years");
  }
  return std::chrono::nanoseconds(std::max<std::int64_t>(1, std::llround(seconds * 1e9)));
}

std::optional<std::chrono::nanoseconds> parse_timeout(const std::string& function, std::optional<double> seconds) {
  if (!seconds) return std::nullopt;
  return parse_timeout(function, *seconds);
}

}  // namespace ferry::python
