// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.GroupConfig: limits and choices of a group, flat.
#include "config.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <variant>

#include "bindings.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kDoc = R"(The largest calls that a group must carry, which fix its memory, and its choices.
Equal on all ranks.

num_experts: global experts of the default placement. max_tokens, max_latency_tokens: per rank and call, of
throughput and latency mode; 0 latency tokens = no latency mode. max_top_k: choices per token. hidden: widest row,
in elements of `dtype`, the widest payload and combine dtype. extra_bytes: per token, for payload blocks beyond the
row and its fp8 scales. recv_rows: rows of the receive window in throughput mode, 0 = worst case (for alignments up
to 128). owned_rows: on the cuda backend, widest rows that owned results may hold together where peers write them,
-1 = those of one rank-major dispatch; what finds no room is copied. max_slots: places of experts over all ranks,
0 = those of the default placement. num_flights: calls in flight of each kind.

topology: a Topology or a list of node sizes; None: nodes of FERRY_NODE_SIZE ranks if that is set, else one node per
machine. placement: None: contiguous. backend: "host" (arrays in host memory), "cuda" (on a GPU); "auto" is "host".
device: of the cuda backend, the number of this rank's GPU, -1 = the thread's current one (torch.cuda.set_device).
network, between nodes: "loopback" or "shm" (ranks of one machine), "tcp", "verbs" (InfiniBand, RoCE), "efa"; "auto":
loopback on one machine, else the first of efa, verbs and tcp that all ranks can use. nics: names of network cards that
this rank uses; empty: the num_nics nearest to near_pci, a PCIe address such as "0000:3b:00.0". traffic_class: empty, a
word such as "low_latency" or "bulk_data", or "dscp:0" to "dscp:63". gated_posts: signals wait for acknowledgements, for
fabrics that reorder packets. proxy_threads: that drive the network for this rank, equal on all ranks; proxy_cores: CPUs
that they are bound to. link_bytes_per_second: over the loopback this rank seems to send over a link of that rate, 0 = as
fast as it goes. What a provider cannot honour is Error(unsupported).
timeout: seconds, of every wait. auto_masks: how often the group masks by itself who misses a deadline, 0 = never.
test_seed, test_max_signal_delay_ns:
for tests, a random delay up to this before every signal; changes no result.)";

using TopologyLike = std::variant<Topology, std::vector<int>>;

std::optional<Topology> parse_topology(std::optional<TopologyLike> given) {
  if (!given) return std::nullopt;
  if (const auto* sizes = std::get_if<std::vector<int>>(&*given)) return Topology::nodes(*sizes);
  return std::get<Topology>(*given);
}

void construct(GroupConfig* self, int num_experts, std::int64_t max_tokens, std::int64_t max_latency_tokens,
               int max_top_k, std::int64_t hidden, const std::string& dtype, std::int64_t extra_bytes,
               std::int64_t recv_rows, std::int64_t owned_rows, int max_slots, int num_flights,
               std::optional<TopologyLike> topology, std::optional<Placement> placement, const std::string& backend,
               int device, const std::string& network, std::vector<std::string> nics, int num_nics,
               const std::string& near_pci, const std::string& traffic_class, bool gated_posts, int proxy_threads,
               std::vector<int> proxy_cores, std::int64_t link_bytes_per_second, double timeout, int auto_masks,
               std::uint64_t test_seed, std::int64_t test_max_signal_delay_ns) {
  constexpr const char* kFunction = "ferry.GroupConfig";
  GroupConfig config{.limits = {.num_experts = num_experts,
                                .max_tokens = max_tokens,
                                .max_latency_tokens = max_latency_tokens,
                                .max_top_k = max_top_k,
                                .hidden = hidden,
                                .dtype = parse_dtype(kFunction, "dtype", dtype),
                                .extra_bytes = extra_bytes,
                                .recv_rows = recv_rows,
                                .owned_rows = owned_rows,
                                .max_slots = max_slots,
                                .num_flights = num_flights},
                     .topology = parse_topology(std::move(topology)),
                     .placement = std::move(placement),
                     .backend = backend,
                     .device = device,
                     .network = network,
                     .network_options = {.nics = std::move(nics),
                                         .num_nics = num_nics,
                                         .near_pci = near_pci,
                                         .traffic_class = traffic_class,
                                         .gated_posts = gated_posts,
                                         .proxy_threads = proxy_threads,
                                         .proxy_cores = std::move(proxy_cores),
                                         .link_bytes_per_second = link_bytes_per_second},
                     .timeout = parse_timeout(kFunction, timeout),
                     .auto_masks = auto_masks,
                     .test = {.seed = test_seed, .max_signal_delay_ns = test_max_signal_delay_ns}};
  new (self) GroupConfig(std::move(config));
}

/// A read-only property for a field of GroupConfig::limits.
template <typename Field>
void bind_limit(nb::class_<GroupConfig>& config, const char* name, Field GroupLimits::*field) {
  config.def_prop_ro(name, [field](const GroupConfig& self) { return self.limits.*field; });
}

void bind_properties(nb::class_<GroupConfig>& config) {
  bind_limit(config, "num_experts", &GroupLimits::num_experts);
  bind_limit(config, "max_tokens", &GroupLimits::max_tokens);
  bind_limit(config, "max_latency_tokens", &GroupLimits::max_latency_tokens);
  bind_limit(config, "max_top_k", &GroupLimits::max_top_k);
  bind_limit(config, "hidden", &GroupLimits::hidden);
  bind_limit(config, "extra_bytes", &GroupLimits::extra_bytes);
  bind_limit(config, "recv_rows", &GroupLimits::recv_rows);
  bind_limit(config, "owned_rows", &GroupLimits::owned_rows);
  bind_limit(config, "max_slots", &GroupLimits::max_slots);
  bind_limit(config, "num_flights", &GroupLimits::num_flights);
  config.def_prop_ro("dtype", [](const GroupConfig& self) { return ferry::name(self.limits.dtype); })
      .def_prop_ro("topology", [](const GroupConfig& self) { return self.topology; })
      .def_prop_ro("placement", [](const GroupConfig& self) { return self.placement; })
      .def_prop_ro("backend", [](const GroupConfig& self) { return self.backend; })
      .def_prop_ro("device", [](const GroupConfig& self) { return self.device; })
      .def_prop_ro("network", [](const GroupConfig& self) { return self.network; })
      .def_prop_ro("nics", [](const GroupConfig& self) { return self.network_options.nics; })
      .def_prop_ro("num_nics", [](const GroupConfig& self) { return self.network_options.num_nics; })
      .def_prop_ro("near_pci", [](const GroupConfig& self) { return self.network_options.near_pci; })
      .def_prop_ro("traffic_class", [](const GroupConfig& self) { return self.network_options.traffic_class; })
      .def_prop_ro("gated_posts", [](const GroupConfig& self) { return self.network_options.gated_posts; })
      .def_prop_ro("proxy_threads", [](const GroupConfig& self) { return self.network_options.proxy_threads; })
      .def_prop_ro("proxy_cores", [](const GroupConfig& self) { return self.network_options.proxy_cores; })
      .def_prop_ro("link_bytes_per_second",
                   [](const GroupConfig& self) { return self.network_options.link_bytes_per_second; })
      .def_prop_ro(
          "timeout", [](const GroupConfig& self) { return std::chrono::duration<double>(self.timeout).count(); },
          "Seconds.")
      .def_prop_ro("auto_masks", [](const GroupConfig& self) { return self.auto_masks; })
      .def_prop_ro("test_seed", [](const GroupConfig& self) { return self.test.seed; })
      .def_prop_ro("test_max_signal_delay_ns", [](const GroupConfig& self) { return self.test.max_signal_delay_ns; });
}

}  // namespace

GroupConfig make_config(const nb::kwargs& keywords) {
  return nb::cast<GroupConfig>(nb::type<GroupConfig>()(**keywords));
}

void bind_config(nb::module_& module) {
  const GroupConfig defaults;
  const GroupLimits& limits = defaults.limits;
  nb::class_<GroupConfig> config(module, "GroupConfig", kDoc);
  config.def(
      "__init__", &construct, nb::kw_only(), "num_experts"_a, "max_tokens"_a = limits.max_tokens,
      "max_latency_tokens"_a = limits.max_latency_tokens, "max_top_k"_a = limits.max_top_k, "hidden"_a = limits.hidden,
      "dtype"_a = ferry::name(limits.dtype), "extra_bytes"_a = limits.extra_bytes, "recv_rows"_a = limits.recv_rows,
      "owned_rows"_a = limits.owned_rows, "max_slots"_a = limits.max_slots, "num_flights"_a = limits.num_flights,
      "topology"_a = nb::none(), "placement"_a = nb::none(), "backend"_a = defaults.backend,
      "device"_a = defaults.device, "network"_a = defaults.network, "nics"_a = defaults.network_options.nics,
      "num_nics"_a = defaults.network_options.num_nics, "near_pci"_a = defaults.network_options.near_pci,
      "traffic_class"_a = defaults.network_options.traffic_class,
      "gated_posts"_a = defaults.network_options.gated_posts,
      "proxy_threads"_a = defaults.network_options.proxy_threads,
      "proxy_cores"_a = defaults.network_options.proxy_cores,
      "link_bytes_per_second"_a = defaults.network_options.link_bytes_per_second,
      "timeout"_a = std::chrono::duration<double>(defaults.timeout).count(), "auto_masks"_a = defaults.auto_masks,
      "test_seed"_a = defaults.test.seed, "test_max_signal_delay_ns"_a = defaults.test.max_signal_delay_ns);
  bind_properties(config);
}

}  // namespace ferry::python
