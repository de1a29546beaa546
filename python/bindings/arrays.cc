// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// DLPack and NumPy in and out. NumPy cannot say bf16, fp8 or UE8M0 through DLPack, and PyTorch not always fp8, so such
// arrays go through integers of the same size.
#include "arrays.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <array>
#include <vector>

#include "cuda_calls.h"
#include "errors.h"
#include "values.h"

namespace nb = nanobind;

namespace ferry::python {
namespace {

using Code = nb::dlpack::dtype_code;

struct DTypeRow {
  DType dtype;
  Code code;
  std::uint8_t bits;
};
constexpr std::array kDlpackTypes{
    DTypeRow{DType::kBf16, Code::Bfloat, 16},         DTypeRow{DType::kFp16, Code::Float, 16},
    DTypeRow{DType::kFp32, Code::Float, 32},          DTypeRow{DType::kFp8E4m3, Code::Float8_E4M3FN, 8},
    DTypeRow{DType::kUe8m0, Code::Float8_E8M0FNU, 8}, DTypeRow{DType::kUint8, Code::UInt, 8},
    DTypeRow{DType::kInt32, Code::Int, 32},           DTypeRow{DType::kInt64, Code::Int, 64},
};

nb::dlpack::dtype dlpack_type(DType dtype) {
  for (const DTypeRow& row : kDlpackTypes) {
    if (row.dtype == dtype) return {static_cast<std::uint8_t>(row.code), row.bits, 1};
  }
  return {};
}

/// Name of the ml_dtypes type that shows a dtype in NumPy, or null if NumPy has the type itself.
const char* ml_dtypes_name(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bfloat16";
    case DType::kFp8E4m3:
      return "float8_e4m3fn";
    case DType::kUe8m0:
      return "float8_e8m0fnu";
    default:
      return nullptr;
  }
}

std::string describe(nb::dlpack::dtype type) {
  constexpr std::array<const char*, 7> kNames{"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string base =
      type.code < kNames.size() ? kNames[type.code] : "dlpack type " + std::to_string(type.code) + " of ";
  return base + std::to_string(type.bits) + (type.code < kNames.size() ? "" : " bits");
}

/// The ml_dtypes types and others that DLPack in NumPy refuses: their dtype by name, from `array.dtype.name`.
std::optional<DType> dtype_by_name(nb::handle value) {
  if (!nb::hasattr(value, "dtype") || !nb::hasattr(value, "view")) return std::nullopt;
  nb::object dtype = value.attr("dtype");
  if (!nb::hasattr(dtype, "name")) return std::nullopt;
  nb::object text = dtype.attr("name");
  if (!PyUnicode_Check(text.ptr())) return std::nullopt;
  const auto found = find_dtype(nb::cast<std::string>(text));
  return found && ml_dtypes_name(*found) != nullptr ? found : std::nullopt;
}

std::string describe(const Device& device) {
  if (device.is_host()) return "in host memory";
  if (device.is_gpu()) return "on CUDA device " + std::to_string(device.id);
  if (device.is_managed()) return "in managed memory";
  return "on DLPack device type " + std::to_string(device.type) + ", number " + std::to_string(device.id);
}

void check_home(const Device& device, const ArrayArgument& argument) {
  if (!argument.home) {
    if (device.is_host() || device.is_managed() || device.is_gpu()) return;
    refuse(argument.function, argument.argument, describe(device), "memory of the CPU or of a CUDA device");
  }
  const Device& home = *argument.home;
  if (device.is_managed() || device == home || (home.is_host() && device.is_host())) return;
  refuse(argument.function, argument.argument, describe(device),
         home.is_gpu() ? "memory of CUDA device " + std::to_string(home.id) + ", the group's"
                       : "memory of the CPU (the group's backend is host)");
}

/// Asked before the array itself is: __dlpack__ of an array on a device may wait for its streams.
Device device_of(nb::handle value) {
  if (!nb::hasattr(value, "__dlpack_device__")) return {};
  nb::object device = value.attr("__dlpack_device__")();
  return {nb::cast<std::int32_t>(nb::int_(device[0])), nb::cast<std::int32_t>(nb::int_(device[1]))};
}

DType dtype_of(nb::dlpack::dtype type, const ArrayArgument& argument) {
  for (const DTypeRow& row : kDlpackTypes) {
    if (type == dlpack_type(row.dtype)) return row.dtype;
  }
  refuse(argument.function, argument.argument, "an array of " + describe(type),
         "bf16, fp16, fp32, fp8_e4m3, ue8m0, uint8, int32 or int64; say what other elements stand for with "
         "ferry.typed(array, dtype)");
}

/// What the elements stand for: `as` if the caller said so, else what DLPack says.
DType choose_dtype(nb::dlpack::dtype seen, std::optional<DType> as, const ArrayArgument& argument) {
  if (!as) return dtype_of(seen, argument);
  if (seen.lanes != 1 || seen.bits != 8 * dtype_bytes(*as)) {
    refuse(argument.function, argument.argument, "an array of " + describe(seen),
           "elements of " + std::to_string(dtype_bytes(*as)) + " bytes, which " + name(*as) + " takes");
  }
  return *as;
}

template <typename NdArray>
Array from_ndarray(NdArray ndarray, std::optional<DType> as, const ArrayArgument& argument, bool is_readonly) {
  const Device device{ndarray.device_type(), ndarray.device_id()};
  check_home(device, argument);
  if (ndarray.ndim() > 3) {
    refuse(argument.function, argument.argument, "an array of " + std::to_string(ndarray.ndim()) + " dimensions",
           "at most 3");
  }
  Array array;
  array.is_readonly = is_readonly;
  array.place.device = device.is_host() ? Device{} : device;
  array.tensor.dtype = choose_dtype(ndarray.dtype(), as, argument);
  array.tensor.data = const_cast<void*>(static_cast<const void*>(ndarray.data()));
  array.tensor.ndim = static_cast<int>(ndarray.ndim());
  for (std::size_t d = 0; d < ndarray.ndim(); ++d) {
    array.tensor.shape[d] = static_cast<std::int64_t>(ndarray.shape(d));
    array.tensor.strides[d] = ndarray.stride(d);
  }
  array.owner = std::make_shared<NdArray>(std::move(ndarray));
  return array;
}

/// The reason why `value` could not be viewed; its own __dlpack__ knows best (a tensor that needs a gradient, say).
std::string describe_failure(nb::handle value) {
  const std::string type = "of type " + std::string(nb::type_name(value.type()).c_str());
  if (!nb::hasattr(value, "__dlpack__")) return type;
  try {
    value.attr("__dlpack__")();
  } catch (nb::python_error& error) {
    return type + " whose __dlpack__ failed (" + nb::str(error.value()).c_str() + ")";
  }
  return type + " with a DLPack capsule that cannot be used";
}

Array import_array(nb::handle value, std::optional<DType> as, const ArrayArgument& argument, Access access) {
  using Writable = nb::ndarray<>;
  using ReadOnly = nb::ndarray<nb::ro>;
  Writable writable;
  if (nb::try_cast<Writable>(value, writable)) return from_ndarray(std::move(writable), as, argument, false);
  ReadOnly readonly;
  if (!nb::try_cast<ReadOnly>(value, readonly)) {
    refuse(argument.function, argument.argument, describe_failure(value),
           "an array with __dlpack__ or the buffer protocol");
  }
  if (access == Access::kWrite)
    refuse(argument.function, argument.argument, "read-only", "an array that can be written");
  return from_ndarray(std::move(readonly), as, argument, true);
}

/// An array that its framework shows without a copy, and what its elements stand for if DLPack cannot say it.
struct Shown {
  nb::object array;
  std::optional<DType> dtype;
};

/// Arrays of ml_dtypes in NumPy, which DLPack there refuses: the same memory as integers. Others as they are.
Shown show_numpy(nb::handle value) {
  const auto dtype = dtype_by_name(value);
  if (!dtype || !nb::isinstance(value, nb::module_::import_("numpy").attr("ndarray"))) return {nb::borrow(value), {}};
  return {value.attr("view")(dtype_bytes(*dtype) == 2 ? "uint16" : "uint8"), dtype};
}

/// fp8 and UE8M0 of PyTorch, which many of its versions refuse: the same memory as bytes. Others as they are.
Shown show_torch(nb::handle value) {
  nb::object type = value.attr("dtype");
  constexpr std::string_view kPrefix = "torch.";
  const std::string text = nb::str(type).c_str();
  const auto dtype =
      text.starts_with(kPrefix) ? find_dtype(std::string_view(text).substr(kPrefix.size())) : std::nullopt;
  if (!dtype || (*dtype != DType::kFp8E4m3 && *dtype != DType::kUe8m0)) return {nb::borrow(value), {}};
  return {value.attr("view")(nb::module_::import_("torch").attr("uint8")), dtype};
}

/// The capsule of an array on a GPU. stream=-1: the exporter orders nothing and waits for nothing, so that calls can be
/// captured. An exporter that does not know these arguments is refused rather than asked to synchronise.
nb::object ask_for_capsule(nb::handle value, const ArrayArgument& argument) {
  using namespace nb::literals;
  const std::string type = "of type " + std::string(nb::type_name(value.type()).c_str());
  try {
    nb::object dlpack = value.attr("__dlpack__");
    try {
      return dlpack("stream"_a = -1, "max_version"_a = nb::make_tuple(1, 1));
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_TypeError)) throw;  // a TypeError: an exporter from before DLPack 1.0
    }
    return dlpack("stream"_a = -1);
  } catch (nb::python_error& error) {
    refuse(argument.function, argument.argument,
           type + " whose __dlpack__ failed (" + nb::str(error.value()).c_str() + ")",
           "an array with __dlpack__(stream=-1)");
  }
}

Array relabel(Array array, DType dtype, const ArrayArgument& argument) {
  array.tensor.dtype = choose_dtype(dlpack_type(array.tensor.dtype), dtype, argument);
  return array;
}

void check_access(const Array& array, Access access, const ArrayArgument& argument) {
  if (access == Access::kWrite && array.is_readonly) {
    refuse(argument.function, argument.argument, "read-only", "an array that can be written");
  }
}

std::vector<std::size_t> shape_of(const Tensor& tensor) {
  return {tensor.shape.begin(), tensor.shape.begin() + tensor.ndim};
}

nb::capsule make_owner(const Array& array) {
  auto owner = std::make_unique<std::shared_ptr<const void>>(array.owner);
  nb::capsule capsule(owner.get(),
                      [](void* pointer) noexcept { delete static_cast<std::shared_ptr<const void>*>(pointer); });
  owner.release();
  return capsule;
}

template <typename NdArray>
nb::object make_ndarray(const Array& array, nb::dlpack::dtype type, const Device& device) {
  const auto shape = shape_of(array.tensor);
  return nb::cast(NdArray(array.tensor.data, shape.size(), shape.data(), make_owner(array), array.tensor.strides.data(),
                          type, device.type, device.id));
}

nb::object export_to_numpy(const Array& array, nb::dlpack::dtype type) {
  if (array.is_readonly) return make_ndarray<nb::ndarray<nb::ro, nb::numpy>>(array, type, {});
  return make_ndarray<nb::ndarray<nb::numpy>>(array, type, {});
}

/// The stream of whoever takes an array over, as the array API standard names it; none: nothing is to be ordered.
std::optional<void*> consumer_stream(const nb::kwargs& arguments) {
  constexpr const char* kFunction = "ferry.Array.__dlpack__";
  nb::object given = arguments.contains("stream") ? nb::object(arguments["stream"]) : nb::none();
  if (given.is_none()) return nullptr;
  std::int64_t number = 0;
  const bool is_number = !PyBool_Check(given.ptr()) && nb::try_cast<std::int64_t>(given, number);
  if (is_number && number == -1) return std::nullopt;
  if (!is_number || number < 1) {
    refuse(kFunction, "stream", nb::repr(given).c_str(),
           "None or 1 (the legacy default stream), 2 (the per-thread one), a stream's handle, or -1 (no ordering)");
  }
  return number == 1 ? nullptr : reinterpret_cast<void*>(number);
}

nb::object export_to_dlpack(const Array& array) {
  const auto type = dlpack_type(array.tensor.dtype);
  const Device& device = array.place.device;
  if (array.is_readonly) return make_ndarray<nb::ndarray<nb::ro, nb::array_api>>(array, type, device);
  return make_ndarray<nb::ndarray<nb::array_api>>(array, type, device);
}

nb::object import_ml_dtypes() {
  try {
    return nb::module_::import_("ml_dtypes");
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    nb::raise_from(
        error, PyExc_ImportError,
        "ferry.Array: NumPy has no bf16, fp8 or UE8M0; install ml_dtypes, or view the bits: array.view(\"uint8\")");
  }
}

}  // namespace

Array read_array(nb::handle value, const ArrayArgument& argument, Access access, std::optional<DType> as) {
  const Array* own = nullptr;
  if (nb::try_cast<const Array*>(value, own) && own != nullptr) {
    check_home(own->place.device, argument);
    check_access(*own, access, argument);
    return as ? relabel(*own, *as, argument) : *own;
  }
  const Device device = device_of(value);
  check_home(device, argument);
  const Shown shown = is_torch_tensor(value) ? show_torch(value) : show_numpy(value);
  if (!as) as = shown.dtype;
  const bool reaches_gpu = device.is_gpu() || (device.is_managed() && argument.home && argument.home->is_gpu());
  return import_array(reaches_gpu ? ask_for_capsule(shown.array, argument) : shown.array, as, argument, access);
}

nb::object to_numpy(const Array& array) {
  if (array.place.device.is_gpu()) {
    refuse("ferry.Array.numpy", "the array", describe(array.place.device),
           "memory of the CPU; copy it there first, with torch.from_dlpack(array).cpu() for instance");
  }
  const char* special = ml_dtypes_name(array.tensor.dtype);
  if (special == nullptr) return export_to_numpy(array, dlpack_type(array.tensor.dtype));
  nb::object type = import_ml_dtypes().attr(special);
  const auto bits = static_cast<std::uint8_t>(8 * dtype_bytes(array.tensor.dtype));
  return export_to_numpy(array, {static_cast<std::uint8_t>(Code::UInt), bits, 1}).attr("view")(type);
}

std::optional<Array> to_python(const Tensor& tensor, const std::shared_ptr<const void>& owner, const Place& place) {
  if (!tensor.present()) return std::nullopt;
  return Array{.tensor = tensor, .owner = owner, .place = place};
}

nb::object to_dlpack(const Array& array, const nb::kwargs& arguments) {
  const Place& place = array.place;
  if (place.device.is_gpu()) {
    const auto consumer = consumer_stream(arguments);
    if (consumer && place.stream) make_follow(place.device.id, *consumer, place.stream->handle);
  }
  return export_to_dlpack(array).attr("__dlpack__")(**arguments);
}

nb::tuple to_tuple(const std::array<std::int64_t, 3>& values, int count) {
  nb::list list;
  for (int i = 0; i < count; ++i) list.append(values[static_cast<std::size_t>(i)]);
  return nb::tuple(list);
}

}  // namespace ferry::python
