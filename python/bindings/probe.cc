// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// For tests on machines without a GPU: what a call of a group on a GPU makes of its arrays and its stream.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

std::size_t choose_stream(const nb::list& arrays, int device, const std::optional<StreamLike>& stream) {
  CallInputs inputs(Device{Device::kCuda, device});
  for (std::size_t i = 0; i < arrays.size(); ++i)
    inputs.read(arrays[i], "ferry._ferry._choose_stream", "arrays[" + std::to_string(i) + "]");
  return reinterpret_cast<std::size_t>(inputs.choose_stream("ferry._ferry._choose_stream", stream));
}

}  // namespace

void bind_probe(nb::module_& module) {
  module.def("_choose_stream", &choose_stream, "arrays"_a, "device"_a, "stream"_a = nb::none(),
             "For tests: reads arrays as a call of a group on CUDA device `device` does and returns the handle of the "
             "stream that the call would go to.");
}

}  // namespace ferry::python
