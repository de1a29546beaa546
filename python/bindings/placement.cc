// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Placement.
#include "ferry/placement.h"

#include <nanobind/nanobind.h>
#include <nanobind/operators.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

using PlaceList = std::vector<std::vector<std::pair<int, int>>>;

Placement make_explicit(const PlaceList& given, int num_ranks) {
  std::vector<std::vector<Place>> places;
  for (const auto& copies : given) {
    std::vector<Place>& expert = places.emplace_back();
    for (const auto& [rank, local_expert] : copies) expert.push_back({.rank = rank, .local_expert = local_expert});
  }
  return Placement::explicit_map(places, num_ranks);
}

std::vector<int> slots_of(const Placement& self, int expert) {
  const auto slots = self.slots_of(expert);
  return {slots.begin(), slots.end()};
}

int choose_slot(const Placement& self, int expert, int source_rank, std::int64_t token,
                const std::vector<bool>& masked) {
  const std::vector<std::uint8_t> flags(masked.begin(), masked.end());
  return self.choose_slot(expert, source_rank, token, flags);
}

}  // namespace

void bind_placement(nb::module_& module) {
  nb::class_<Placement>(
      module, "Placement",
      "The map from global expert ids to places; an expert may have several copies (replicas). Places of all "
      "ranks are numbered through as slots: first_slot(rank) + local index.")
      .def_static(
          "contiguous", &Placement::contiguous, "num_experts"_a, "num_ranks"_a,
          "Experts in order, each rank as many as the next; the first ranks take one more each if a rest is left.")
      .def_static("explicit_map", &make_explicit, "places"_a, "num_ranks"_a,
                  "places[e] lists the copies of expert e as (rank, local index). Each place must be taken exactly "
                  "once and each "
                  "rank's indices must be 0 .. n-1 without a gap, else Error(\"invalid_argument\").")
      .def_prop_ro("num_experts", &Placement::num_experts)
      .def_prop_ro("num_ranks", &Placement::num_ranks)
      .def_prop_ro("num_slots", &Placement::num_slots)
      .def_prop_ro("max_local_experts", &Placement::max_local_experts)
      .def("first_slot", &Placement::first_slot, "rank"_a)
      .def("num_local_experts", &Placement::num_local_experts, "rank"_a)
      .def("rank_of_slot", &Placement::rank_of_slot, "slot"_a)
      .def("expert_of_slot", &Placement::expert_of_slot, "slot"_a)
      .def("slots_of", &slots_of, "expert"_a, "Slots that hold copies of an expert, in the order given.")
      .def("choose_slot", &choose_slot, "expert"_a, "source_rank"_a, "token"_a, "masked"_a = std::vector<bool>{},
           "The copy that a token uses: live copy number (source_rank + token) mod live copies, or -1 if none is left.")
      .def("digest", &Placement::digest)
      .def(
          "__eq__", [](const Placement& self, const Placement& other) { return self == other; }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", &Placement::digest)
      .def("__repr__", [](const Placement& self) {
        return "ferry.Placement(num_experts=" + std::to_string(self.num_experts()) +
               ", num_ranks=" + std::to_string(self.num_ranks()) + ", num_slots=" + std::to_string(self.num_slots()) +
               ")";
      });
}

}  // namespace ferry::python
