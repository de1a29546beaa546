// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a configuration needs and moves, and what a group has done: memory_plan, traffic_plan, GroupStatistics,
// StepTrace.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "ferry/group.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

TrafficPlan plan_traffic(const GroupConfig& config, const Topology& topology, nb::handle reduction, std::int64_t tokens,
                         int top_k) {
  return traffic_plan(config, topology, parse_reduction("ferry.traffic_plan", reduction), tokens, top_k);
}

std::string represent(const RegionPlan& self) {
  return "ferry.RegionPlan(\"" + self.name + "\", offset_bytes=" + std::to_string(self.offset_bytes) +
         ", bytes=" + std::to_string(self.bytes) + ")";
}

std::string represent(const StepTrace& self) {
  return "ferry.StepTrace(\"" + self.step + "\", rows=" + std::to_string(self.rows) +
         ", bytes=" + std::to_string(self.bytes) + ", seconds=" + std::to_string(self.seconds) + ")";
}

void bind_memory_plan(nb::module_& module) {
  nb::class_<RegionPlan>(module, "RegionPlan", "A named part of a window, or (cuda) what is reserved for results.")
      .def_ro("name", &RegionPlan::name)
      .def_ro("offset_bytes", &RegionPlan::offset_bytes)
      .def_ro("bytes", &RegionPlan::bytes)
      .def("__repr__", [](const RegionPlan& self) { return represent(self); });
  nb::class_<MemoryPlan>(module, "MemoryPlan", "What one rank's windows will hold and what it reserves for results.")
      .def_ro("regions", &MemoryPlan::regions)
      .def_ro("total_bytes", &MemoryPlan::total_bytes)
      .def_ro("recv_rows", &MemoryPlan::recv_rows, "Rows of the receive window of one flight.");
  module.def("memory_plan", &memory_plan, "config"_a, "topology"_a, "rank"_a,
             "The bytes that a group of this configuration takes on `rank`, per region; allocates nothing. The same "
             "numbers that "
             "Group uses. Raises Error(\"invalid_argument\") for limits that make no sense.");
}

void bind_traffic_plan(nb::module_& module) {
  nb::class_<TrafficPlan>(
      module, "TrafficPlan",
      "Bytes that a rank sends in one dispatch and one combine: expectation, mean over ranks, throughput mode.")
      .def_ro("dispatch_node_bytes", &TrafficPlan::dispatch_node_bytes,
              "To other ranks of the node, rows handed on for other nodes included.")
      .def_ro("dispatch_network_bytes", &TrafficPlan::dispatch_network_bytes,
              "To other nodes: one row per (token, node).")
      .def_ro("combine_node_bytes", &TrafficPlan::combine_node_bytes)
      .def_ro("combine_network_bytes", &TrafficPlan::combine_network_bytes,
              "per_node: one row per (token, node); per_rank: per (token, rank); flat: per choice.");
  module.def("traffic_plan", &plan_traffic, "config"_a, "topology"_a, "reduction"_a, "tokens"_a, "top_k"_a,
             nb::sig("def traffic_plan(config: GroupConfig, topology: Topology, reduction: Reduction | str, tokens: "
                     "int, top_k: int) "
                     "-> TrafficPlan"),
             "Bytes for `tokens` tokens per rank with `top_k` distinct experts drawn uniformly; rows of hidden x dtype "
             "of the limits.");
}

}  // namespace

void bind_plans(nb::module_& module) {
  bind_memory_plan(module);
  bind_traffic_plan(module);
  nb::class_<GroupStatistics>(module, "GroupStatistics", "A group's counters at one moment.")
      .def_ro("epoch", &GroupStatistics::epoch, "Calls begun.")
      .def_ro("membership", &GroupStatistics::membership, "Changes of membership.")
      .def_ro("window_bytes", &GroupStatistics::window_bytes, "Of this rank.")
      .def_ro(
          "device_memory", &GroupStatistics::device_memory,
          "How ranks map each other's device memory: by fabric handles, or by file descriptors and why. Empty on the "
          "host backend.")
      .def_ro("wait_ns", &GroupStatistics::wait_ns, "[R] time spent waiting for each rank.")
      .def_ro("network_commands", &GroupStatistics::network_commands)
      .def_ro("network_bytes", &GroupStatistics::network_bytes);
  nb::class_<StepTrace>(module, "StepTrace",
                        "One step of the last call on this rank: the rows that the step itself stored or sent off, "
                        "their bytes, its time with its waits. route counts tokens and the bytes of counts.")
      .def_ro("step", &StepTrace::step, "One of the seven steps.")
      .def_ro("rows", &StepTrace::rows)
      .def_ro("bytes", &StepTrace::bytes)
      .def_ro("seconds", &StepTrace::seconds)
      .def("__repr__", [](const StepTrace& self) { return represent(self); });
}

}  // namespace ferry::python
