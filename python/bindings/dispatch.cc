// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Dispatch: the group's methods, ferry.DispatchResult and ferry.PendingDispatch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "bindings.h"
#include "calls.h"
#include "cuda_calls.h"
#include "errors.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kResultDoc = R"(What arrived. N = rows received, Nx = expert rows with padding, C = capacity,
E_local = local experts.

rank_major: payload[b] [N, W_b], one row per (token, this rank), ordered by (source rank, source token).
expert_major: payload[b] [Nx, W_b], experts ascending, inside an expert by (source rank, source token, choice).
expert_padded: payload[b] [E_local, C, W_b], the same order inside an expert.

Row strides are the block's bytes rounded up to 16, divided by the element size. Rows beyond the real ones are
unspecified unless zeroed on request. With host_counts=False, N and Nx in shapes are the receive capacity. Arrays of
a window view (output="window") show this call until the rank starts the dispatch num_flights later, and stay mapped
for as long as they live. With backend="cuda" they lie on the GPU and are written on the call's stream: work on another
stream takes them through __dlpack__ (torch.from_dlpack), which orders it, and is done before they are let go.)";

constexpr const char* kDispatchDoc = R"(Sends every token's row to the ranks that own its experts and returns what
arrived here.

payload: an array or a list of arrays [T, W_b], any strides: the row itself (bf16, fp16, fp32, fp8_e4m3, bytes),
then its scales and any further bytes. Only the first can be coded on the way. topk_ids: [T, K] int32 or int64,
global expert ids, negative = no choice; None with `handle`. topk_weights: [T, K] float32, optional, travels with
the tokens. handle: of an earlier dispatch, to route exactly as it did, without counting.

mode: "throughput", "latency" or "auto": the mode of `handle` if one is given, else latency if the call's largest
rank fits the group's max_latency_tokens, the layout is not expert_major and latency mode takes this expert_capacity
and so many choices, else throughput; mode_of(...) says which. max_tokens: most tokens that any rank gives to this
call, 0 = the group's max_tokens: ranks must agree on the mode, so it never follows from this rank's own T. layout:
"rank_major", "expert_major" (throughput only) or "expert_padded". codec:
"none", or "fp8_f32" / "fp8_ue8m0" for bf16 rows, which add a block of scales, one per `scale_block` channels (128
or 32), float32 or powers of two. alignment, zero_padding: of the expert blocks of expert_major. expert_capacity:
rows per expert of expert_padded, 0 = ranks x max tokens as far as the window holds them; rows that name an expert
several times can need more (Error("overflow") states it). renormalise: scale the live weights up by what masked ranks
would have had. host_counts: shape the results exactly. output: "window" (a view) or "owned". placement: None: the
group's. num_sms: most SMs that a kernel of the call occupies, 0 = automatic; ignored by the host backend.
handle_memory: an array without gaps, of any dtype of Ferry, that lends the handle its memory: handle_bytes(...) bytes, at
a multiple of 16; None: the group makes some. It is kept as long as the handle or anything that came of it, and must not
be written until then. timeout: seconds, of every wait of this call; None: the group's. out, expert_padded on the host backend: arrays
[E_local, C, W_b], any strides, one per block of the result's payload, which then is these very objects; real rows are
written when the call is received, so they can be handed on before.

With backend="cuda" all arrays lie on the group's GPU. stream: a CUDA stream's handle as a number, or an object with
cuda_stream (PyTorch) or __cuda_stream__; the call follows the work on it, and its later work may use the result. None:
the current stream of the arrays' framework, see Group. Inputs may be changed, and memory given back, by later work on
that stream. With host_counts=False the host waits for nothing and the call can be captured into a CUDA graph; its
result must be kept for as long as the graph.

Collective: all ranks make the same sequence of calls with equal modes, max_tokens, layouts, codecs, dtypes, widths
and K. The GIL is given away while it runs. Raises Error: "invalid_argument" or "unsupported" before anything moves,
"overflow", "timeout", "peer_lost", "mismatch", "aborted".)";

constexpr const char* kSendDoc = R"(The first half of dispatch, with the same arguments: returns a PendingDispatch
as soon as the rows are sent. receive() goes on with the same stream.

All ranks start sends in the same order; receives may come in any order. The inputs may be changed once this
returns. Dropping the result is safe: the group then receives the rows itself and throws them away.)";

struct PayloadKind {
  static constexpr auto name =
      nb::detail::const_name("ferry.values.ArrayLike | collections.abc.Sequence[ferry.values.ArrayLike]");
};
using Payload = Argument<PayloadKind>;

struct OutKind {
  static constexpr auto name = nb::detail::const_name("collections.abc.Sequence[ferry.values.ArrayLike]");
};
using Out = Argument<OutKind>;

/// The arrays and objects that a dispatch is given.
struct Given {
  nb::handle payload;
  const std::optional<ArrayLike>& topk_ids;
  const std::optional<ArrayLike>& topk_weights;
  const std::optional<Handle>& handle;
  const std::optional<Placement>& placement;
  const std::optional<ArrayLike>& handle_memory;
  const std::optional<Out>& out;
};

/// The plain arguments of a dispatch.
struct Options {
  std::string mode, layout, codec, output;
  int scale_block = 128;
  int alignment = 1;
  std::int64_t expert_capacity = 0;
  std::int64_t max_tokens = 0;
  bool zero_padding = false;
  bool renormalise = false;
  bool host_counts = true;
  int num_sms = 0;
  const std::optional<StreamLike>& stream;
  std::optional<double> timeout;
};

void read_payload(DispatchInputs& inputs, nb::handle payload, const std::string& function) {
  if (!PyList_Check(payload.ptr()) && !PyTuple_Check(payload.ptr())) {
    inputs.args.payload.push_back(inputs.read(payload, function, "payload"));
    return;
  }
  for (nb::handle block : payload) {
    const std::string argument = "payload[" + std::to_string(inputs.args.payload.size()) + "]";
    inputs.args.payload.push_back(inputs.read(block, function, argument));
  }
}

void read_handle_memory(DispatchInputs& inputs, nb::handle memory, const std::string& function) {
  const Tensor tensor = inputs.read(memory, function, "handle_memory", Access::kWrite, &inputs.handle_memory_owner);
  std::int64_t side_by_side = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    if (tensor.shape[i] > 1 && tensor.strides[i] != side_by_side)
      refuse(function, "handle_memory", "an array with gaps, or in another order", "a contiguous array");
    side_by_side *= tensor.shape[i];
  }
  const std::size_t num_bytes = static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(tensor.dtype);
  if (num_bytes == 0) refuse(function, "handle_memory", "an empty array", "at least Group.handle_bytes bytes, or None");
  inputs.args.handle_memory = {static_cast<std::byte*>(tensor.data), num_bytes};
}

void read_out(DispatchInputs& inputs, nb::handle out, const std::string& function) {
  inputs.out = nb::tuple(nb::borrow(out));
  for (nb::handle block : inputs.out) {
    const std::string argument = "out[" + std::to_string(inputs.args.out.size()) + "]";
    inputs.args.out.push_back(inputs.read(block, function, argument, Access::kWrite));
  }
}

std::shared_ptr<DispatchInputs> read_inputs(const PyGroup& group, const std::string& function, const Given& given,
                                            const Options& options) {
  auto inputs = std::make_shared<DispatchInputs>(group.home);
  DispatchArgs& args = inputs->args;
  read_payload(*inputs, given.payload, function);
  if (given.topk_ids) args.topk_ids = inputs->read(given.topk_ids->value, function, "topk_ids");
  if (given.topk_weights) args.topk_weights = inputs->read(given.topk_weights->value, function, "topk_weights");
  if (given.handle) {
    inputs->handle = *given.handle;
    args.handle = &inputs->handle;
  }
  if (given.placement) {
    inputs->placement = given.placement;
    args.placement = &*inputs->placement;
  }
  if (given.handle_memory) read_handle_memory(*inputs, given.handle_memory->value, function);
  if (given.out) read_out(*inputs, given.out->value, function);
  args.mode = parse_mode(function, options.mode);
  args.layout = parse_layout(function, options.layout);
  args.codec = parse_codec(function, options.codec);
  args.output = parse_output(function, options.output);
  args.scale_block = options.scale_block;
  args.alignment = options.alignment;
  args.expert_capacity = options.expert_capacity;
  args.max_tokens = options.max_tokens;
  args.zero_padding = options.zero_padding;
  args.renormalise = options.renormalise;
  args.host_counts = options.host_counts;
  args.num_sms = options.num_sms;
  args.timeout = parse_timeout(function, options.timeout);
  args.stream = inputs->choose_stream(function, options.stream);
  return inputs;
}

/// Adds a method that takes the arguments of a dispatch and calls `run(PyGroup&, shared_ptr<DispatchInputs>)`.
template <typename Run>
void def_dispatch(GroupClass& group, const char* method, Run run, const char* doc) {
  const std::string function = std::string("ferry.Group.") + method;
  group.def(
      method,
      [function, run](PyGroup& self, const Payload& payload, const std::optional<ArrayLike>& topk_ids,
                      const std::optional<ArrayLike>& topk_weights, const std::optional<Handle>& handle,
                      std::string mode, std::string layout, std::string codec, int scale_block, int alignment,
                      std::int64_t expert_capacity, bool zero_padding, bool renormalise, bool host_counts,
                      std::string output, const std::optional<Placement>& placement, int num_sms,
                      const std::optional<ArrayLike>& handle_memory, const std::optional<StreamLike>& stream,
                      std::optional<double> timeout, const std::optional<Out>& out, std::int64_t max_tokens) {
        const Given given{payload.value, topk_ids, topk_weights, handle, placement, handle_memory, out};
        const Options options{std::move(mode),  std::move(layout),
                              std::move(codec), std::move(output),
                              scale_block,      alignment,
                              expert_capacity,  max_tokens,
                              zero_padding,     renormalise,
                              host_counts,      num_sms,
                              stream,           timeout};
        return run(self, read_inputs(self, function, given, options));
      },
      "payload"_a, "topk_ids"_a = nb::none(), "topk_weights"_a = nb::none(), nb::kw_only(), "handle"_a = nb::none(),
      "mode"_a = "throughput", "layout"_a = "rank_major", "codec"_a = "none", "scale_block"_a = 128, "alignment"_a = 1,
      "expert_capacity"_a = 0, "zero_padding"_a = false, "renormalise"_a = false, "host_counts"_a = true,
      "output"_a = "window", "placement"_a = nb::none(), "num_sms"_a = 0, "handle_memory"_a = nb::none(),
      "stream"_a = nb::none(), "timeout"_a = nb::none(), "out"_a = nb::none(), "max_tokens"_a = 0, doc);
}

/// Counts that the host waits for would be written by work that is captured and does not run.
bool waits_for_graph(const DispatchInputs& inputs) {
  const Device& device = inputs.place().device;
  return device.is_gpu() && inputs.args.host_counts && is_captured(device.id, inputs.args.stream);
}

constexpr const char* kCaptured = "True while the stream is being captured into a CUDA graph";

void check_capture(const char* function, const DispatchInputs& inputs) {
  if (waits_for_graph(inputs)) refuse(function, "host_counts", kCaptured, "False");
}

/// The handle keeps the memory that it was lent, and the group remembers which stream wrote its result.
void finish(PyDispatchResult& made, const DispatchInputs& inputs, GroupUse& use) {
  Handle& handle = made.result.handle;
  const std::span<std::byte> bytes = handle.mutable_bytes();
  if (bytes.data() == inputs.args.handle_memory.data())
    handle = Handle(inputs.handle_memory_owner, bytes, handle.shadow());
  if (made.place.stream) use.streams.remember(handle, *made.place.stream);
}

PyDispatchResult dispatch(PyGroup& self, const std::shared_ptr<DispatchInputs>& inputs) {
  const auto turn = self.use->enter("ferry.Group.dispatch");
  check_capture("ferry.Group.dispatch", *inputs);
  PyDispatchResult result{.result = {}, .out = inputs->out, .place = inputs->place()};
  {
    nb::gil_scoped_release release;
    result.result = self.group->dispatch(inputs->args);
  }
  finish(result, *inputs, *self.use);
  return result;
}

PyPendingDispatch dispatch_send(PyGroup& self, std::shared_ptr<DispatchInputs> inputs) {
  const auto turn = self.use->enter("ferry.Group.dispatch_send");
  check_capture("ferry.Group.dispatch_send", *inputs);
  PendingDispatch pending;
  {
    nb::gil_scoped_release release;
    pending = self.group->dispatch_send(inputs->args);
  }
  return {std::move(pending), std::move(inputs), self.use};
}

PyDispatchResult receive(PyPendingDispatch& self) {
  const auto turn = self.use->enter("ferry.PendingDispatch.receive");
  PyDispatchResult result{.result = {}, .out = self.call->inputs->out, .place = self.call->inputs->place()};
  self.call->is_received = true;
  {
    nb::gil_scoped_release release;
    result.result = self.call->pending.receive();
  }
  finish(result, *self.call->inputs, *self.use);
  return result;
}

nb::typed<nb::tuple, Array, nb::ellipsis> payload_of(const PyDispatchResult& self) {
  if (self.out.is_valid()) return nb::borrow<nb::tuple>(self.out);
  nb::list blocks;
  for (const Tensor& block : self.result.payload) blocks.append(to_python(block, self.result.owner, self.place));
  return nb::tuple(blocks);
}

/// A read-only property for a tensor of the result; `Type` is Array or optional<Array>.
template <typename Type>
void bind_tensor(nb::class_<PyDispatchResult>& result, const char* name, Tensor DispatchResult::*tensor,
                 const char* doc) {
  result.def_prop_ro(
      name,
      [tensor](const PyDispatchResult& self) -> Type {
        std::optional<Array> array = to_python(self.result.*tensor, self.result.owner, self.place);
        if constexpr (std::is_same_v<Type, Array>) {
          return array.value_or(Array{});
        } else {
          return array;
        }
      },
      doc);
}

void bind_result(nb::module_& module) {
  nb::class_<PyDispatchResult> result(module, "DispatchResult", kResultDoc);
  result.def_prop_ro("layout", [](const PyDispatchResult& self) { return name(self.result.layout); })
      .def_prop_ro("payload", &payload_of,
                   "The blocks that were given, the scales that a codec added after the first; what was given as "
                   "`out`, if it was.")
      .def_prop_ro(
          "host_expert_counts", [](const PyDispatchResult& self) { return self.result.host_expert_counts; },
          "The aligned counts [E_local]; empty without host_counts.")
      .def_prop_ro("handle", [](const PyDispatchResult& self) { return Handle(self.result.handle); });
  bind_tensor<std::optional<Array>>(
      result, "topk_ids", &DispatchResult::topk_ids,
      "rank_major: [N, K] local expert ids, -1 elsewhere, dtype of the ids given (cached: int32).");
  bind_tensor<std::optional<Array>>(
      result, "topk_weights", &DispatchResult::topk_weights,
      "float32, if weights were given: rank_major [N, K], exactly 0 where the id is -1; expert_major "
      "[Nx]; expert_padded [E_local, C].");
  bind_tensor<Array>(result, "num_rows", &DispatchResult::num_rows, "int64 [1]: N.");
  bind_tensor<Array>(result, "source_offsets", &DispatchResult::source_offsets, "int32 [R + 1].");
  bind_tensor<Array>(result, "expert_counts", &DispatchResult::expert_counts, "int32 [E_local], without padding.");
  bind_tensor<std::optional<Array>>(result, "expert_offsets", &DispatchResult::expert_offsets,
                                    "int32 [E_local + 1]: first row of each expert, aligned (expert layouts).");
  bind_tensor<std::optional<Array>>(result, "rank_counts", &DispatchResult::rank_counts,
                                    "int32 [R, R]: rows that rank i sends to rank j. Host backend, throughput mode "
                                    "without a handle given; else None.");
}

}  // namespace

void bind_dispatch(nb::module_& module) {
  bind_result(module);
  nb::class_<PyPendingDispatch>(module, "PendingDispatch", "A dispatch that was sent and not yet received.")
      .def("receive", &receive,
           "Waits for the rows and returns the DispatchResult. Once only; Error(\"invalid_argument\") the second time.")
      .def_prop_ro(
          "valid", [](const PyPendingDispatch& self) { return !self.call->is_received; }, "Not yet received.");
}

void bind_dispatch_methods(GroupClass& group) {
  def_dispatch(group, "dispatch", &dispatch, kDispatchDoc);
  def_dispatch(group, "dispatch_send", &dispatch_send, kSendDoc);
  def_dispatch(
      group, "why_not",
      [](PyGroup& self, const std::shared_ptr<DispatchInputs>& inputs) {
        const auto turn = self.use->enter("ferry.Group.why_not");
        if (waits_for_graph(*inputs)) return std::string("host_counts is ") + kCaptured + ", expected False";
        return self.group->why_not(inputs->args);
      },
      "Empty if a dispatch (or, with x= and handle=, a combine) with these arguments can be made, else the reason and "
      "what would "
      "work. Looks at values only, never at data.");
  def_dispatch(
      group, "mode_of",
      [](PyGroup& self, const std::shared_ptr<DispatchInputs>& inputs) {
        const auto turn = self.use->enter("ferry.Group.mode_of");
        return name(self.group->mode_of(inputs->args));
      },
      "The mode that a dispatch with these arguments takes: theirs, or what \"auto\" comes to.");
  def_dispatch(
      group, "handle_bytes",
      [](PyGroup& self, const std::shared_ptr<DispatchInputs>& inputs) {
        const auto turn = self.use->enter("ferry.Group.handle_bytes");
        return self.group->handle_bytes(inputs->args);
      },
      "Bytes of the largest handle that a dispatch of this shape can make.");
}

}  // namespace ferry::python
