// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Reduction.
#include <nanobind/nanobind.h>
#include <nanobind/operators.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kDoc = R"(How the rows of one token are added up in combine.

group: "choice" (no groups), "rank", or "node" (by rank, then by node). order: groups follow each other "ascending"
by rank or node, or by the position of their "last_choice". A stage starts at +0 (the last one at bias0 + bias1, in
float32), adds its terms in order and rounds once to the dtype of the rows.)";

Reduction make(const std::string& group, const std::string& order) {
  return {parse_reduction_group("ferry.Reduction", group), parse_reduction_order("ferry.Reduction", order)};
}

std::string represent(const Reduction& self) {
  return std::string("ferry.Reduction(group=\"") + name(self.group) + "\", order=\"" + name(self.order) + "\")";
}

}  // namespace

void bind_reduction(nb::module_& module) {
  nb::class_<Reduction>(module, "Reduction", kDoc)
      .def(
          "__init__",
          [](Reduction* self, const std::string& group, const std::string& order) {
            new (self) Reduction(make(group, order));
          },
          "group"_a = "rank", "order"_a = "ascending")
      .def_static("flat", &Reduction::flat,
                  "Choices ascending, one rounding: the bits of a single-process reference, whatever the placement and "
                  "topology.")
      .def_static("per_rank", &Reduction::per_rank,
                  "Choices ascending inside a rank, one rounding, then ranks ascending.")
      .def_static("per_node", &Reduction::per_node,
                  "As per_rank inside a node with one rounding, then nodes ascending.")
      .def_prop_ro("group", [](const Reduction& self) { return name(self.group); })
      .def_prop_ro("order", [](const Reduction& self) { return name(self.order); })
      .def(
          "__eq__", [](const Reduction& self, const Reduction& other) { return self == other; }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__",
           [](const Reduction& self) { return 2 * static_cast<int>(self.group) + static_cast<int>(self.order); })
      .def("__str__", [](const Reduction& self) { return ferry::name(self); })
      .def("__repr__", &represent);
}

}  // namespace ferry::python
