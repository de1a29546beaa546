// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// DLPack and NumPy in and out. NumPy cannot say bf16, fp8 or UE8M0 through DLPack, so arrays of ml_dtypes go through
// integers of the same size, in both directions.
#include "arrays.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <array>
#include <vector>

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

void check_device(std::int64_t device_type, std::int64_t device_id, const ArrayArgument& argument) {
  const bool cpu_reads_it = device_type == nb::device::cpu::value || device_type == nb::device::cuda_host::value ||
                            device_type == nb::device::cuda_managed::value ||
                            device_type == nb::device::rocm_host::value;
  if (!cpu_reads_it) {
    refuse(argument.function, argument.argument,
           "on DLPack device type " + std::to_string(device_type) + ", number " + std::to_string(device_id),
           "memory of the CPU (this build has the host backend only)");
  }
}

/// Asks before the array is: __dlpack__ of an array on a device may wait for its streams.
void check_device(nb::handle value, const ArrayArgument& argument) {
  if (!nb::hasattr(value, "__dlpack_device__")) return;
  nb::object device = value.attr("__dlpack_device__")();
  check_device(nb::cast<std::int64_t>(nb::int_(device[0])), nb::cast<std::int64_t>(nb::int_(device[1])), argument);
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
  check_device(ndarray.device_type(), ndarray.device_id(), argument);
  if (ndarray.ndim() > 3) {
    refuse(argument.function, argument.argument, "an array of " + std::to_string(ndarray.ndim()) + " dimensions",
           "at most 3");
  }
  Array array;
  array.is_readonly = is_readonly;
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

/// Arrays of ml_dtypes in NumPy, which DLPack there refuses: the same memory as integers. Others as they are.
nb::object view_as_bits(nb::handle value, DType dtype) {
  if (!nb::isinstance(value, nb::module_::import_("numpy").attr("ndarray"))) return nb::borrow(value);
  return value.attr("view")(dtype_bytes(dtype) == 2 ? "uint16" : "uint8");
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
nb::object make_ndarray(const Array& array, nb::dlpack::dtype type) {
  const auto shape = shape_of(array.tensor);
  return nb::cast(NdArray(array.tensor.data, shape.size(), shape.data(), make_owner(array), array.tensor.strides.data(),
                          type, nb::device::cpu::value));
}

nb::object export_to_numpy(const Array& array, nb::dlpack::dtype type) {
  if (array.is_readonly) return make_ndarray<nb::ndarray<nb::ro, nb::numpy>>(array, type);
  return make_ndarray<nb::ndarray<nb::numpy>>(array, type);
}

nb::object export_to_dlpack(const Array& array) {
  const auto type = dlpack_type(array.tensor.dtype);
  if (array.is_readonly) return make_ndarray<nb::ndarray<nb::ro, nb::array_api>>(array, type);
  return make_ndarray<nb::ndarray<nb::array_api>>(array, type);
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
    check_access(*own, access, argument);
    return as ? relabel(*own, *as, argument) : *own;
  }
  check_device(value, argument);
  if (const auto dtype = dtype_by_name(value)) {
    nb::object bits = view_as_bits(value, *dtype);
    const bool is_numpy = !bits.is(value);
    return import_array(bits, as || !is_numpy ? as : dtype, argument, access);
  }
  return import_array(value, as, argument, access);
}

nb::object to_numpy(const Array& array) {
  const char* special = ml_dtypes_name(array.tensor.dtype);
  if (special == nullptr) return export_to_numpy(array, dlpack_type(array.tensor.dtype));
  nb::object type = import_ml_dtypes().attr(special);
  const auto bits = static_cast<std::uint8_t>(8 * dtype_bytes(array.tensor.dtype));
  return export_to_numpy(array, {static_cast<std::uint8_t>(Code::UInt), bits, 1}).attr("view")(type);
}

std::optional<Array> to_python(const Tensor& tensor, const std::shared_ptr<const void>& owner) {
  if (!tensor.present()) return std::nullopt;
  return Array{.tensor = tensor, .owner = owner};
}

nb::object to_dlpack(const Array& array, const nb::kwargs& arguments) {
  return export_to_dlpack(array).attr("__dlpack__")(**arguments);
}

nb::tuple to_tuple(const std::array<std::int64_t, 3>& values, int count) {
  nb::list list;
  for (int i = 0; i < count; ++i) list.append(values[static_cast<std::size_t>(i)]);
  return nb::tuple(list);
}

}  // namespace ferry::python
