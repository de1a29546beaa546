// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Topology.
#include "ferry/topology.h"

#include <nanobind/nanobind.h>
#include <nanobind/operators.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {

void bind_topology(nb::module_& module) {
  nb::class_<Topology>(
      module, "Topology",
      "Which ranks form a node, i.e. can load and store in each other's windows. Nodes may have any sizes.")
      .def_static("single_node", &Topology::single_node, "num_ranks"_a, "One node that holds all ranks.")
      .def_static(
          "nodes", &Topology::nodes, "node_sizes"_a,
          "Nodes of the given sizes; ranks are numbered node by node. Raises Error(\"invalid_argument\") on an empty "
          "list or a size below 1.")
      .def_static("split", &Topology::split, "num_ranks"_a, "num_nodes"_a,
                  "Ranks over nodes as evenly as possible; the first nodes take the remainder.")
      .def_prop_ro("num_ranks", &Topology::num_ranks)
      .def_prop_ro("num_nodes", &Topology::num_nodes)
      .def("node_of", &Topology::node_of, "rank"_a,
           "Node of a rank; raises IndexError out of range, as all look-ups here.")
      .def("local_rank", &Topology::local_rank, "rank"_a, "Position of a rank in its node.")
      .def("node_size", &Topology::node_size, "node"_a)
      .def("first_rank", &Topology::first_rank, "node"_a,
           "Lowest rank of a node; first_rank(num_nodes) is the number of ranks.")
      .def("describe", &Topology::describe, "Sizes of the nodes, e.g. \"4+4\".")
      .def(
          "__eq__", [](const Topology& self, const Topology& other) { return self == other; }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const Topology& self) { return nb::hash(nb::str(self.describe().c_str())); })
      .def("__repr__", [](const Topology& self) { return "ferry.Topology(\"" + self.describe() + "\")"; });
}

}  // namespace ferry::python
