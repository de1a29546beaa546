// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Streams as frameworks name them.
#include "streams.h"

#include "cuda_calls.h"
#include "errors.h"

namespace nb = nanobind;

namespace ferry::python {
namespace {

constexpr const char* kExpected =
    "a stream's handle as a number (0 or 1: the legacy default stream), an object with __cuda_stream__ or cuda_stream, "
    "or "
    "None";

/// A module that somebody else has imported.
nb::object imported(const char* name) {
  nb::dict modules = nb::borrow<nb::dict>(PyImport_GetModuleDict());
  return modules.contains(name) ? nb::object(modules[name]) : nb::object();
}

bool is_instance(nb::handle value, const char* module_name, const char* type_name) {
  nb::object module = imported(module_name);
  if (!module.is_valid() || !nb::hasattr(module, type_name)) return false;  // somebody else's, or half imported
  return nb::isinstance(value, module.attr(type_name));
}

/// 0 and 1 both name the legacy default stream.
void* to_handle(std::size_t number) {
  return number == 1 ? nullptr : reinterpret_cast<void*>(number);
}

Stream read_number(const std::string& function, nb::handle number, nb::handle keeper) {
  std::size_t handle = 0;
  if (PyBool_Check(number.ptr()) || !nb::try_cast<std::size_t>(number, handle))
    refuse(function, "stream", nb::repr(number).c_str(), kExpected);
  return {to_handle(handle), nb::borrow(keeper)};
}

/// The number inside a stream object of some framework; invalid if it is none.
nb::object number_of(nb::handle stream) {
  if (PyLong_Check(stream.ptr())) return nb::borrow(stream);
  if (nb::hasattr(stream, "cuda_stream")) return stream.attr("cuda_stream");
  if (!nb::hasattr(stream, "__cuda_stream__")) return {};
  nb::object protocol = stream.attr("__cuda_stream__");
  nb::object version_and_handle = PyCallable_Check(protocol.ptr()) != 0 ? protocol() : protocol;
  return nb::isinstance<nb::tuple>(version_and_handle) && nb::len(version_and_handle) == 2
             ? nb::object(version_and_handle[1])
             : nb::object();
}

void check_device(const std::string& function, nb::handle stream, int device) {
  if (!nb::hasattr(stream, "device_index")) return;  // PyTorch says it
  std::int64_t seen = -1;
  if (!nb::try_cast<std::int64_t>(stream.attr("device_index"), seen) || seen == device) return;
  refuse(function, "stream", "of CUDA device " + std::to_string(seen),
         "a stream of CUDA device " + std::to_string(device) + ", the group's");
}

}  // namespace

bool is_torch_tensor(nb::handle value) {
  return is_instance(value, "torch", "Tensor");
}

Stream parse_stream(const std::string& function, nb::handle value, int device) {
  nb::object number = number_of(value);
  if (!number.is_valid()) refuse(function, "stream", nb::repr(value).c_str(), kExpected);
  check_device(function, value, device);
  return read_number(function, number, value);
}

std::optional<Stream> current_stream(nb::handle array, int device) {
  if (is_torch_tensor(array)) {
    nb::object stream = imported("torch").attr("cuda").attr("current_stream")(device);
    return read_number("torch.cuda.current_stream", stream.attr("cuda_stream"), stream);
  }
  if (is_instance(array, "cupy", "ndarray")) {
    nb::object stream = imported("cupy").attr("cuda").attr("get_current_stream")(device);
    return read_number("cupy.cuda.get_current_stream", stream.attr("ptr"), stream);
  }
  return std::nullopt;
}

void StreamChoice::look_at(nb::handle array, const std::optional<Stream>& written, int device) {
  if (written) {
    written_.push_back(*written);
  } else if (!current_) {  // arrays of a call come from one framework; asking for each would cost
    current_ = current_stream(array, device);
  }
}

Stream StreamChoice::choose(int device) const {
  const Stream chosen = current_ ? *current_ : !written_.empty() ? written_.front() : Stream{};
  for (const Stream& other : written_) make_follow(device, chosen.handle, other.handle);
  return chosen;
}

}  // namespace ferry::python
