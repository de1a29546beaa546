// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Group.
#include "ferry/group.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "arrays.h"
#include "bindings.h"
#include "calls.h"
#include "config.h"
#include "cuda_calls.h"
#include "errors.h"
#include "meeting.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kDoc = R"(One rank's end of the ranks that dispatch and combine together. Everything hangs on
it; there are no globals.

Group(meeting, num_experts=..., ...) takes the keywords of GroupConfig, or one as `config`. Making it is collective
over the meeting; raises Error("invalid_argument", "bootstrap", "mismatch" or "timeout").

Every rank makes the same sequence of dispatch and combine calls (sends, when phases are split); receives may come
in any order. One thread at a time may use a group (others get an Error), except abort(), which any thread may call.
Waits give the GIL away. Ranks on several nodes that have calls of two groups in flight must receive them in the same
order: a rank hands on rows of others while it is inside a call of that group.

A result with output="window" stays valid until this rank starts the dispatch num_flights later. Results own a share
of the memory, so using one for longer, or after close(), reads stale rows but never unmapped memory.

backend="cuda": calls take and return arrays on the group's GPU and put their work on a CUDA stream: the one given as
`stream`, else the current stream of PyTorch or CuPy if an array is theirs, else the stream that wrote the first
ferry.Array among them, else the legacy default stream. The host waits for nothing but the counts of a dispatch with
host_counts=True; other calls can be captured into a CUDA graph.

After an Error with code "timeout", "peer_lost", "mismatch" or "overflow" the call is over on this rank and the
group goes on with the next call; "invalid_argument" found before the call leaves the group as it was. If only some
ranks made or failed a call, they may be out of step: their next calls end in named errors until the membership
changes or another group is made. A group is a context manager that closes itself.)";

constexpr const char* kCombineInputDoc = R"(Where the experts may write their results, so that combine reads them where
they are and copies nothing; backend="cuda".

handle: of the dispatch whose rows come back. dtype: "bf16", "fp16" or "fp32". elements: H, of a row. Returns an Array on
the group's GPU in the layout of the dispatch: rank_major [N, H], expert_major [Nx, H], expert_padded [E_local, C, H],
rows padded to 16 bytes; after host_counts=False N and Nx are the capacity. Nothing is copied where all of it is given to
combine: the Array, or a tensor made of it (torch.from_dlpack), on whose stream the call then goes.

What lies there is unspecified until it is written. Its contents belong to this call until the rank starts the dispatch
num_flights after the handle's; the memory stays mapped as long as the Array lives. The Array goes by the stream of the
dispatch: taking it on another one (__dlpack__) orders the two. Local; the host waits for nothing. Raises Error:
"unsupported" on the host backend, where combine reads any array in place; "invalid_argument".)";

constexpr const char* kInitSignature =
    "def __init__(self, meeting: Meeting, config: GroupConfig | None = None, *, num_experts: int = ..., max_tokens: "
    "int = ..., "
    "max_latency_tokens: int = ..., max_top_k: int = ..., hidden: int = ..., dtype: str = ..., extra_bytes: int = ..., "
    "recv_rows: int = ..., owned_rows: int = ..., max_slots: int = ..., num_flights: int = ..., "
    "topology: Topology | collections.abc.Sequence[int] | None = ..., placement: Placement | None = ..., backend: str "
    "= ..., "
    "device: int = ..., network: str = ..., nics: Sequence[str] = ..., num_nics: int = ..., near_pci: str = ..., "
    "traffic_class: str = ..., gated_posts: bool = ..., proxy_threads: int = ..., proxy_cores: Sequence[int] = ..., "
    "link_bytes_per_second: int = ..., timeout: float = ..., auto_masks: int = ..., test_seed: int = ..., "
    "test_max_signal_delay_ns: int "
    "= ...) -> None";

GroupConfig choose_config(nb::handle config, const nb::kwargs& keywords) {
  if (config.is_none()) return make_config(keywords);
  if (keywords.size() > 0) {
    refuse("ferry.Group", "config", "given together with keywords", "one or the other");
  }
  GroupConfig given;
  if (!nb::try_cast<GroupConfig>(config, given)) {
    refuse("ferry.Group", "config", nb::type_name(config.type()).c_str(), "a ferry.GroupConfig");
  }
  return given;
}

void construct(PyGroup* self, PyMeeting& meeting, nb::handle config, const nb::kwargs& keywords) {
  GroupConfig chosen = choose_config(config, keywords);
  if (chosen.backend == "cuda" && chosen.device < 0)
    chosen.device = current_device();  // calls on any thread check by it
  const auto turn = meeting.use.enter("ferry.Group");
  std::optional<Group> group;
  {
    nb::gil_scoped_release release;
    group.emplace(Group::create(chosen, *meeting.meeting));
  }
  new (self) PyGroup(std::move(*group), chosen);
}

/// Adds a method without the GIL that runs `member` of the C++ group for one thread at a time.
template <typename Result, typename... Args, typename... Extra>
void def_exclusive(GroupClass& group, const char* method, Result (Group::*member)(Args...), const Extra&... extra) {
  const std::string function = std::string("ferry.Group.") + method;
  group.def(
      method,
      [function, member](PyGroup& self, Args... args) -> Result {
        const auto turn = self.use->enter(function.c_str());
        nb::gil_scoped_release release;
        return ((*self.group).*member)(args...);
      },
      extra...);
}

std::vector<bool> masked(PyGroup& self) {
  const auto turn = self.use->enter("ferry.Group.masked");
  return self.group->masked();
}

GroupStatistics statistics(PyGroup& self) {
  const auto turn = self.use->enter("ferry.Group.statistics");
  return self.group->statistics();
}

std::vector<StepTrace> last_trace(PyGroup& self) {
  const auto turn = self.use->enter("ferry.Group.last_trace");
  return self.group->last_trace();
}

Array combine_input(PyGroup& self, const Handle& handle, const std::string& dtype, std::int64_t elements) {
  constexpr const char* kFunction = "ferry.Group.combine_input";
  const auto turn = self.use->enter(kFunction);
  std::shared_ptr<const void> owner;
  const Tensor input = self.group->combine_input(handle, parse_dtype(kFunction, "dtype", dtype), elements, &owner);
  return {.tensor = input, .owner = std::move(owner), .place = {self.home, self.use->streams.of(handle)}};
}

void close(PyGroup& self) {
  const auto turn = self.use->enter("ferry.Group.close");
  self.group->close();
}

void bind_properties(GroupClass& group) {
  group.def_prop_ro("rank", [](const PyGroup& self) { return self.group->rank(); })
      .def_prop_ro("size", [](const PyGroup& self) { return self.group->size(); })
      .def_prop_ro("topology", [](const PyGroup& self) { return Topology(self.group->topology()); })
      .def_prop_ro("placement", [](const PyGroup& self) { return Placement(self.group->placement()); })
      .def_prop_ro("config", [](const PyGroup& self) { return GroupConfig(self.group->config()); })
      .def_prop_ro(
          "backend_name", [](const PyGroup& self) { return self.group->backend_name(); },
          "The backend that was chosen: \"host\" or \"cuda\".")
      .def_prop_ro(
          "network_name", [](const PyGroup& self) { return self.group->network_name(); },
          "The network that was chosen, \"loopback\" or \"tcp\" for example; \"none\" if all ranks are in one node.");
}

}  // namespace

namespace {

/// The end of a group may wait, for what runs on its device for example; and that for a rank on another thread, which needs the GIL.
void end_group(Group* group) {
  nb::gil_scoped_release release;
  delete group;
}

}  // namespace

PyGroup::PyGroup(Group made, const GroupConfig& config)
    : group(new Group(std::move(made)), &end_group),
      use(std::make_shared<GroupUse>(config.limits.num_flights)),
      home(group->backend_name() == "cuda" ? Device{Device::kCuda, config.device} : Device{}) {}

PyGroup::~PyGroup() {
  use->drop(std::move(group));
}

void bind_group(nb::module_& module) {
  GroupClass group(module, "Group", kDoc);
  group.def("__init__", &construct, "meeting"_a, "config"_a = nb::none(), "keywords"_a, nb::sig(kInitSignature));
  bind_properties(group);
  bind_dispatch_methods(group);
  bind_combine_methods(group);
  def_exclusive(
      group, "mask", &Group::mask, "rank"_a,
      "Leaves `rank` out from the next call on: nothing is sent to it, nothing awaited, its part is left out. All "
      "remaining ranks must make the same changes before the same call.");
  def_exclusive(
      group, "unmask", &Group::unmask, "rank"_a,
      "Takes `rank` back from the next call on; the rank itself calls unmask(group.rank), too, and joins the others' "
      "count of calls.");
  def_exclusive(group, "check", &Group::check,
                "Raises the fault of an earlier call that was not raised yet, or Error(\"aborted\").");
  group.def("combine_input", &combine_input, "handle"_a, "dtype"_a, "elements"_a, kCombineInputDoc);
  group.def("masked", &masked, "[R] True for ranks that are left out, those masked automatically among them.")
      .def(
          "abort", [](PyGroup& self) { self.group->abort(); }, nb::call_guard<nb::gil_scoped_release>(),
          "Ends every wait here and on the peers with Error(\"aborted\"). Local; may be called from any thread.")
      .def("close", &close,
           "Gives the memory back as soon as nobody uses it. Local, idempotent; calls after it are "
           "Error(\"invalid_argument\").")
      .def("statistics", &statistics, "Counters at this moment.")
      .def("last_trace", &last_trace, "Seconds and bytes of each step of the last call on this rank.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); }, nb::sig("def __enter__(self) -> Group"))
      .def(
          "__exit__", [](PyGroup& self, nb::args) { close(self); },
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace ferry::python
