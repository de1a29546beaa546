// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Combine: the group's methods, ferry.CombineResult and ferry.PendingCombine.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <string>

#include "bindings.h"
#include "calls.h"
#include "errors.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kCombineDoc = R"(Returns the experts' results to their tokens and sums them.

x: bf16, fp16 or fp32 in the layout of the dispatch: rank_major [N, H], expert_major [Nx, H], expert_padded
[E_local, C, H]; rows beyond the real ones are never read. handle: of the dispatch whose rows come back. reduction:
"flat" (expert layouts only), "per_rank", "per_node" or a Reduction. weights, expert layouts only: "dispatch"
multiplies each choice's row with the weight that travelled with the dispatch, an array [T, K] float32 gives them
here, on the token's side. codec, latency mode and bf16 x: "fp8_f32" or "logfmt10" code what a rank returns in 8 or 10
bits a channel, restored within 1/16 or 2.21 % of each value (docs/python.md has the bounds and what they leave out).
bias: an array [T, H] of the dtype of x or float32, or a pair of them, added on the token's side.
topk_weights: float32 in the shape of DispatchResult.topk_weights; each choice's value returns to [T,
K], 0 for a choice that has none. out: an array [T, H] of x's dtype to write. num_sms, stream: as in dispatch; with
backend="cuda" the host waits for nothing. timeout: seconds, of every wait of this call; None: the group's.

Returns a CombineResult. A token that was sent nowhere gets the bias, or 0. Collective: equal dtypes, reduction,
kind of weights and codec on all ranks. The GIL is given away while it runs. Raises Error as dispatch does.)";

constexpr const char* kSendDoc = R"(The first half of combine, with the same arguments: returns a PendingCombine as
soon as the rows are sent.

x may be changed once this returns; the biases and `out` belong to the call until it was received.)";

struct WeightsKind {
  static constexpr auto name = nb::detail::const_name("ferry.values.ArrayLike | str");
};
struct BiasKind {
  static constexpr auto name =
      nb::detail::const_name("ferry.values.ArrayLike | tuple[ferry.values.ArrayLike, ferry.values.ArrayLike]");
};
struct ReductionKind {
  static constexpr auto name = nb::detail::const_name("Reduction | str");
};
using WeightsLike = Argument<WeightsKind>;
using BiasLike = Argument<BiasKind>;
using ReductionLike = Argument<ReductionKind>;

/// Every Python argument of a combine.
struct Given {
  const ArrayLike& x;
  const Handle& handle;
  const ReductionLike& reduction;
  const std::optional<WeightsLike>& weights;
  const std::string& codec;
  const std::optional<BiasLike>& bias;
  const std::optional<ArrayLike>& topk_weights;
  const std::optional<ArrayLike>& out;
  int num_sms = 0;
  const std::optional<StreamLike>& stream;
  std::optional<double> timeout;
};

void read_weights(CombineInputs& inputs, nb::handle weights, const std::string& function) {
  if (!PyUnicode_Check(weights.ptr())) {
    inputs.args.weighting = CombineArgs::Weighting::kGiven;
    inputs.args.weights = inputs.read(weights, function, "weights");
    return;
  }
  const auto text = nb::cast<std::string>(weights);
  if (text != "dispatch")
    refuse(function, "weights", "\"" + text + "\"", "\"dispatch\", an array [T, K] float32, or None");
  inputs.args.weighting = CombineArgs::Weighting::kFromDispatch;
}

void read_bias(CombineInputs& inputs, nb::handle bias, const std::string& function) {
  if (!PyTuple_Check(bias.ptr()) && !PyList_Check(bias.ptr())) {
    inputs.args.bias0 = inputs.read(bias, function, "bias");
    return;
  }
  if (nb::len(bias) != 2)
    refuse(function, "bias", "a sequence of " + std::to_string(nb::len(bias)), "an array or a pair of arrays");
  inputs.args.bias0 = inputs.read(bias[0], function, "bias[0]");
  inputs.args.bias1 = inputs.read(bias[1], function, "bias[1]");
}

std::shared_ptr<CombineInputs> read_inputs(const PyGroup& group, const std::string& function, const Given& given) {
  auto inputs = std::make_shared<CombineInputs>(group.home);
  CombineArgs& args = inputs->args;
  inputs->handle = given.handle;
  args.handle = &inputs->handle;
  args.x = inputs->read(given.x.value, function, "x");
  args.reduction = parse_reduction(function, given.reduction.value);
  if (given.weights) read_weights(*inputs, given.weights->value, function);
  args.codec = parse_codec(function, given.codec);
  if (given.bias) read_bias(*inputs, given.bias->value, function);
  if (given.topk_weights) args.topk_weights = inputs->read(given.topk_weights->value, function, "topk_weights");
  if (given.out) {
    args.out = inputs->read(given.out->value, function, "out", Access::kWrite);
    inputs->out = given.out->value;
  }
  args.num_sms = given.num_sms;
  args.timeout = parse_timeout(function, given.timeout);
  args.stream = inputs->choose_stream(function, given.stream);
  return inputs;
}

/// Adds a method that takes the arguments of a combine and calls `run(PyGroup&, shared_ptr<CombineInputs>)`. `extra`
/// is what stands before the first argument.
template <typename Run, typename... Extra>
void def_combine(GroupClass& group, const char* method, Run run, const char* doc, const Extra&... extra) {
  const std::string function = std::string("ferry.Group.") + method;
  constexpr bool kAllByKeyword = sizeof...(Extra) > 0;
  auto call = [function, run](PyGroup& self, const ArrayLike& x, const Handle& handle, const ReductionLike& reduction,
                              const std::optional<WeightsLike>& weights, const std::string& codec,
                              const std::optional<BiasLike>& bias, const std::optional<ArrayLike>& topk_weights,
                              const std::optional<ArrayLike>& out, int num_sms, const std::optional<StreamLike>& stream,
                              std::optional<double> timeout) {
    return run(self,
               read_inputs(self, function,
                           {x, handle, reduction, weights, codec, bias, topk_weights, out, num_sms, stream, timeout}));
  };
  if constexpr (kAllByKeyword) {
    group.def(method, call, extra..., "x"_a, "handle"_a, "reduction"_a = "per_rank", "weights"_a = nb::none(),
              "codec"_a = "none", "bias"_a = nb::none(), "topk_weights"_a = nb::none(), "out"_a = nb::none(),
              "num_sms"_a = 0, "stream"_a = nb::none(), "timeout"_a = nb::none(), doc);
  } else {
    group.def(method, call, "x"_a, "handle"_a, nb::kw_only(), "reduction"_a = "per_rank", "weights"_a = nb::none(),
              "codec"_a = "none", "bias"_a = nb::none(), "topk_weights"_a = nb::none(), "out"_a = nb::none(),
              "num_sms"_a = 0, "stream"_a = nb::none(), "timeout"_a = nb::none(), doc);
  }
}

PyCombineResult combine(PyGroup& self, const std::shared_ptr<CombineInputs>& inputs) {
  const auto turn = self.use->enter("ferry.Group.combine");
  PyCombineResult result{.result = {}, .out = inputs->out, .place = inputs->place()};
  {
    nb::gil_scoped_release release;
    result.result = self.group->combine(inputs->args);
  }
  self.use->count_combine();
  return result;
}

PyPendingCombine combine_send(PyGroup& self, std::shared_ptr<CombineInputs> inputs) {
  const auto turn = self.use->enter("ferry.Group.combine_send");
  PendingCombine pending;
  {
    nb::gil_scoped_release release;
    pending = self.group->combine_send(inputs->args);
  }
  self.use->count_combine();
  return {std::move(pending), std::move(inputs), self.use};
}

PyCombineResult receive(PyPendingCombine& self) {
  const auto turn = self.use->enter("ferry.PendingCombine.receive");
  PyCombineResult result{.result = {}, .out = self.call->inputs->out, .place = self.call->inputs->place()};
  self.call->is_received = true;
  nb::gil_scoped_release release;
  result.result = self.call->pending.receive();
  return result;
}

nb::object out_of(const PyCombineResult& self) {
  if (self.out.is_valid()) return self.out;
  return nb::cast(to_python(self.result.out, self.result.owner, self.place));
}

}  // namespace

void bind_combine(nb::module_& module) {
  nb::class_<PyCombineResult>(module, "CombineResult", "What combine returns.")
      .def_prop_ro("out", &out_of, nb::sig("def out(self) -> typing.Any"),
                   "[T, H] in the dtype of x: an Array of its own memory, or the very object that was given as `out`.")
      .def_prop_ro(
          "topk_weights",
          [](const PyCombineResult& self) {
            return to_python(self.result.topk_weights, self.result.owner, self.place);
          },
          "[T, K] float32, if topk_weights was given.");
  nb::class_<PyPendingCombine>(module, "PendingCombine", "A combine that was sent and not yet received.")
      .def("receive", &receive,
           "Waits for the rows, sums them and returns the CombineResult. Once only; Error(\"invalid_argument\") the "
           "second time.")
      .def_prop_ro(
          "valid", [](const PyPendingCombine& self) { return !self.call->is_received; }, "Not yet received.");
}

void bind_combine_methods(GroupClass& group) {
  def_combine(group, "combine", &combine, kCombineDoc);
  def_combine(group, "combine_send", &combine_send, kSendDoc);
  def_combine(
      group, "why_not",
      [](PyGroup& self, const std::shared_ptr<CombineInputs>& inputs) {
        const auto turn = self.use->enter("ferry.Group.why_not");
        return self.group->why_not(inputs->args);
      },
      "As above for a combine; all arguments by keyword.", nb::kw_only());
}

}  // namespace ferry::python
