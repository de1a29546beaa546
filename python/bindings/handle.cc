// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Handle.
#include "ferry/handle.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "bindings.h"
#include "errors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

/// A view of numbers inside the handle's memory that keeps the handle.
Array view_numbers(const Handle& handle, std::span<const std::int32_t> numbers) {
  const std::int32_t* data = numbers.data();
  return {.tensor = Tensor::contiguous(data, DType::kInt32, {static_cast<std::int64_t>(numbers.size())}),
          .owner = std::make_shared<Handle>(handle),
          .is_readonly = true,
          .place = {}};
}

std::int32_t source_token(const Handle& self, std::int64_t row) {
  if (row < 0 || row >= self.num_rows()) {
    refuse("ferry.Handle.source_token", "row", std::to_string(row), "0 to " + std::to_string(self.num_rows() - 1));
  }
  return self.source_token(row);
}

nb::bytes to_bytes(const Handle& self) {
  if (self.shadow())  // its block is device memory
    refuse("ferry.Handle.__bytes__", "the handle", "in memory of a CUDA device", "a handle of the host backend");
  return nb::bytes(self.bytes().data(), self.bytes().size());
}

}  // namespace

void bind_handle(nb::module_& module) {
  nb::class_<Handle>(
      module, "Handle",
      "What a dispatch remembers for combine and for cached dispatches. May be used by any number of them, of the "
      "group that made it, also after its receive window was reused. After masks changed, combine still takes it "
      "(ranks left out contribute nothing) unless other ranks forward between nodes now; cached dispatches refuse "
      "it.\n\n"
      "On the cuda backend it lies in memory of the GPU. After host_counts=False the host does not know its counts: "
      "num_rows and num_expert_rows are the capacity, and the arrays raise Error(\"unsupported\"); DispatchResult has "
      "them "
      "on the GPU. source_token and bytes() are for the host backend alone.")
      .def_prop_ro("layout", [](const Handle& self) { return name(self.layout()); })
      .def_prop_ro("mode", [](const Handle& self) { return name(self.mode()); })
      .def_prop_ro("num_tokens", &Handle::num_tokens, "T: tokens that this rank dispatched.")
      .def_prop_ro("top_k", &Handle::top_k, "K: choices per token.")
      .def_prop_ro("num_rows", &Handle::num_rows, "N: (token, this rank) pairs received.")
      .def_prop_ro("num_expert_rows", &Handle::num_expert_rows, "Nx: rows of the expert layouts, padding included.")
      .def_prop_ro("num_local_experts", &Handle::num_local_experts)
      .def_prop_ro("expert_capacity", &Handle::expert_capacity, "Rows per expert of expert_padded, else 0.")
      .def_prop_ro(
          "source_offsets", [](const Handle& self) { return view_numbers(self, self.source_offsets()); },
          "int32 [R + 1]: rows from rank s are o[s] to o[s + 1] in rank-major order.")
      .def_prop_ro(
          "expert_counts", [](const Handle& self) { return view_numbers(self, self.expert_counts()); },
          "int32 [E_local]: rows per local expert, without padding.")
      .def_prop_ro(
          "expert_offsets", [](const Handle& self) { return view_numbers(self, self.expert_offsets()); },
          "int32 [E_local + 1]: first row of each expert (expert layouts).")
      .def_prop_ro("nbytes", [](const Handle& self) { return self.bytes().size(); })
      .def("source_token", &source_token, "row"_a, "Index at its source of rank-major row `row`.")
      .def("__bytes__", &to_bytes)
      .def("__repr__", [](const Handle& self) {
        return std::string("ferry.Handle(layout=\"") + name(self.layout()) + "\", mode=\"" + name(self.mode()) +
               "\", num_tokens=" + std::to_string(self.num_tokens()) + ", num_rows=" + std::to_string(self.num_rows()) +
               ")";
      });
}

}  // namespace ferry::python
