// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Array and the function ferry.typed.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <limits>

#include "arrays.h"
#include "bindings.h"
#include "errors.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

constexpr const char* kArrayDoc = R"(A dense array of up to three dimensions in memory that Ferry, or whoever made
it, owns; on the host, or on a CUDA device.

What calls return are Arrays: views that keep their memory mapped for as long as they, or anything made from them,
live; also after the group was closed. How long the *contents* of a window view stay is said at Group.

np.asarray(a) and a.numpy() give a numpy.ndarray of the same memory, with bf16, fp8 and UE8M0 as ml_dtypes types.
torch.from_dlpack(a), jax.dlpack.from_dlpack(a) and cupy.from_dlpack(a) work for all dtypes that those know;
np.from_dlpack(a) for all but bf16, fp8 and UE8M0, which DLPack in NumPy lacks. Nothing is copied. Arrays on a CUDA
device cannot be read as NumPy's: numpy() and what rests on it raise Error("invalid_argument").

On a CUDA device, __dlpack__(stream=s) puts a wait on stream s for the stream that wrote the array, unless they are the
same; the host waits for nothing. s is a stream's handle, 1 or None for the legacy default stream, 2 for the per-thread
one, -1 for no ordering. Between a stream that is being captured into a CUDA graph and one that is not, nothing is
ordered.)";

constexpr const char* kTypedDoc = R"(Says what the elements of an array stand for.

array: anything with __dlpack__ or the buffer protocol, on the host or on a CUDA device. dtype: "bf16", "fp16", "fp32",
"fp8_e4m3", "ue8m0", "uint8", "int32" or "int64" (also the names of NumPy and ml_dtypes), of the same size as the
elements. For frameworks without such a type: typed(bits, "bf16") for uint16, typed(bits, "fp8_e4m3") or typed(bits, "ue8m0") for uint8. Returns an
Array of the same memory. Raises Error("invalid_argument") if the sizes differ.)";

std::int64_t num_bytes(const Array& array) {
  std::int64_t bytes = 0;  // an array may be one element, expanded to any shape
  const auto element = static_cast<std::int64_t>(dtype_bytes(array.tensor.dtype));
  const bool too_many = __builtin_mul_overflow(array.tensor.num_elements(), element, &bytes);
  return too_many ? std::numeric_limits<std::int64_t>::max() : bytes;
}

nb::object as_array(const Array& array, nb::handle dtype, nb::handle copy) {
  nb::object view = to_numpy(array);
  nb::module_ numpy = nb::module_::import_("numpy");
  const bool other_dtype = !dtype.is_none() && !view.attr("dtype").equal(numpy.attr("dtype")(dtype));
  const bool must_copy = !copy.is_none() && nb::cast<bool>(copy);
  const bool may_copy = copy.is_none() || must_copy;
  if (other_dtype && !may_copy) throw nb::value_error("ferry.Array: another dtype needs a copy, and copy is False");
  if (other_dtype) return view.attr("astype")(dtype);
  return must_copy ? view.attr("copy")() : view;
}

std::int64_t length(const Array& array) {
  if (array.tensor.ndim == 0) throw nb::type_error("len() of an array without dimensions");
  return array.tensor.shape[0];
}

std::string device_name(const Array& array) {
  const Device& device = array.place.device;
  return device.is_gpu() ? "cuda:" + std::to_string(device.id) : "cpu";
}

std::string represent(const Array& array) {
  const std::string shape = nb::repr(to_tuple(array.tensor.shape, array.tensor.ndim)).c_str();
  const std::string device = array.place.device.is_gpu() ? ", device=\"" + device_name(array) + "\"" : "";
  return "ferry.Array(shape=" + shape + ", dtype=\"" + name(array.tensor.dtype) + "\"" + device + ")";
}

Array typed(const ArrayLike& array, const std::string& dtype) {
  const DType as = parse_dtype("ferry.typed", "dtype", dtype);
  Array made = read_array(array.value, {"ferry.typed", "array"}, Access::kRead, as);
  if (made.place.device.is_gpu() && !made.place.stream)
    made.place.stream = current_stream(array.value, made.place.device.id);
  return made;
}

Array view(const Array& array, const std::string& dtype) {
  const DType as = parse_dtype("ferry.Array.view", "dtype", dtype);
  return read_array(nb::cast(array), {"ferry.Array.view", "the array"}, Access::kRead, as);
}

void bind_properties(nb::class_<Array>& array) {
  array
      .def_prop_ro(
          "shape", [](const Array& self) { return to_tuple(self.tensor.shape, self.tensor.ndim); },
          nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro(
          "strides", [](const Array& self) { return to_tuple(self.tensor.strides, self.tensor.ndim); },
          nb::sig("def strides(self) -> tuple[int, ...]"), "In elements, not bytes.")
      .def_prop_ro(
          "dtype", [](const Array& self) { return name(self.tensor.dtype); },
          "A name of ferry.DType: \"bf16\", \"fp16\", \"fp32\", \"fp8_e4m3\", \"ue8m0\", \"uint8\", \"int32\", "
          "\"int64\".")
      .def_prop_ro("device", &device_name, "\"cpu\", or \"cuda:0\" for CUDA device 0.")
      .def_prop_ro("ndim", [](const Array& self) { return self.tensor.ndim; })
      .def_prop_ro(
          "size", [](const Array& self) { return self.tensor.num_elements(); }, "Number of elements.")
      .def_prop_ro(
          "itemsize", [](const Array& self) { return dtype_bytes(self.tensor.dtype); }, "Bytes of one element.")
      .def_prop_ro("nbytes", &num_bytes, "Bytes of the elements, without gaps between rows.")
      .def_prop_ro("readonly", [](const Array& self) { return self.is_readonly; });
}

}  // namespace

void bind_array(nb::module_& module) {
  nb::class_<Array> array(module, "Array", kArrayDoc);
  bind_properties(array);
  array
      .def("numpy", &to_numpy, nb::sig("def numpy(self) -> typing.Any"),
           "A numpy.ndarray of the same memory, on the host.")
      .def("view", &view, "dtype"_a, "The same memory with another dtype of the same size.")
      .def(
          "tolist", [](const Array& self) { return nb::object(to_numpy(self).attr("tolist")()); },
          nb::sig("def tolist(self) -> list[typing.Any]"), "Nested lists of Python numbers.")
      .def("__array__", &as_array, "dtype"_a = nb::none(), "copy"_a = nb::none(),
           nb::sig("def __array__(self, dtype: typing.Any = None, copy: bool | None = None) -> typing.Any"))
      .def("__dlpack__", &to_dlpack, "arguments"_a,
           nb::sig("def __dlpack__(self, **arguments: typing.Any) -> typing.Any"))
      .def(
          "__dlpack_device__",
          [](const Array& self) { return nb::make_tuple(self.place.device.type, self.place.device.id); },
          nb::sig("def __dlpack_device__(self) -> tuple[int, int]"))
      .def("__len__", &length)
      .def(
          "__getitem__", [](const Array& self, nb::handle index) { return nb::object(to_numpy(self)[index]); },
          nb::sig("def __getitem__(self, index: typing.Any, /) -> typing.Any"), "As numpy.ndarray.__getitem__.")
      .def(
          "__setitem__", [](const Array& self, nb::handle index, nb::handle value) { to_numpy(self)[index] = value; },
          nb::sig("def __setitem__(self, index: typing.Any, value: typing.Any, /) -> None"),
          "As numpy.ndarray.__setitem__.")
      .def("__repr__", &represent);
  module.def("typed", &typed, "array"_a, "dtype"_a, kTypedDoc);
}

}  // namespace ferry::python
