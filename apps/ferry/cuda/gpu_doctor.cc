// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Looks at every GPU and every pair of them.
#include "gpu_doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <stdexcept>

#include "nvlinks.h"
#include "peer_trial.h"

#ifndef FERRY_CUDA_ARCHITECTURES
#define FERRY_CUDA_ARCHITECTURES ""
#endif

namespace ferry::app {
namespace {

using Tell = std::function<void(const GpuFinding&)>;

Capability usable(std::string name, std::string detail) {
  return {std::move(name), true, std::move(detail), ""};
}
Capability unusable(std::string name, std::string detail, std::string fix) {
  return {std::move(name), false, std::move(detail), std::move(fix)};
}
/// What the cuda backend can do without.
GpuFinding remark(Capability capability) {
  return {.capability = std::move(capability), .needed = false};
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}
const char* yes_or_no(int value) {
  return value != 0 ? "yes" : "no";
}

int attribute_of(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
int attribute_of(const Driver& driver, CUdevice_attribute attribute, int device) {
  int value = 0;
  driver.check(driver.attribute(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

/// Both versions; the driver must be of the runtime's major version or later.
Capability look_at_versions() {
  int driver = 0, runtime = 0;
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  const std::string detail =
      driver == 0
          ? fmt::format("no driver, runtime {} inside this program", version_text(runtime))
          : fmt::format("driver {}, runtime {} inside this program", version_text(driver), version_text(runtime));
  if (driver / 1000 >= runtime / 1000) return usable("CUDA versions", detail);
  return unusable("CUDA versions", detail, fmt::format("install a driver for CUDA {} or later", version_text(runtime)));
}

std::string fix_for(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
      return "none needed for the host backend; a container needs its GPUs given to it (--gpus all), and "
             "CUDA_VISIBLE_DEVICES must not be empty";
    case cudaErrorSystemNotReady:
      return "start nvidia-fabricmanager, of the driver's version; this machine's NVLink switches wait for it";
    case cudaErrorSystemDriverMismatch:
      return "load the kernel module of the driver that is installed: restart the machine";
    default:
      return look_at_versions().usable
                 ? "see the kernel's log for NVRM and Xid lines; restart the machine"
                 : "none needed for the host backend; install the NVIDIA driver, in a container the "
                   "NVIDIA container toolkit";
  }
}

GpuFinding look_at_gpu(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  const std::string name = fmt::format("GPU {}", device);
  const std::string detail = fmt::format("{}, compute capability {}.{}, {} SMs", properties.name, properties.major,
                                         properties.minor, properties.multiProcessorCount);
  std::size_t free = 0, total = 0;
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) status = cudaMemGetInfo(&free, &total);
  if (status != cudaSuccess) {
    return {.capability =
                unusable(name, fmt::format("{}; no context: {}", detail, cudaGetErrorString(status)), fix_for(status))};
  }
  return {.capability = usable(name, fmt::format("{}, {:.1f} of {:.1f} GB free", detail,
                                                 static_cast<double>(free) / 1e9, static_cast<double>(total) / 1e9))};
}

GpuFinding look_at_code(int device) {
  const std::string name = fmt::format("GPU {} code", device);
  const std::string built = FERRY_CUDA_ARCHITECTURES;
  const int major = attribute_of(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute_of(cudaDevAttrComputeCapabilityMinor, device);
  const std::string code = code_for_gpu(built, major, minor);
  if (!code.empty()) return {.capability = usable(name, fmt::format("{} (this build: {})", code, built))};
  return {.capability = unusable(name, fmt::format("this build holds code for {} only", built),
                                 fmt::format("build with -DFERRY_CUDA_ARCHITECTURES={}{}", major, minor))};
}

GpuFinding look_at_compute_mode(int device) {
  const std::string name = fmt::format("GPU {} compute mode", device);
  switch (attribute_of(cudaDevAttrComputeMode, device)) {
    case cudaComputeModeDefault:
      return {.capability = usable(name, "default: several processes may use it")};
    case cudaComputeModeProhibited:
      return {.capability = unusable(name, "prohibited", fmt::format("nvidia-smi -i {} -c DEFAULT", device))};
    default:
      return remark(unusable(name, "exclusive: one process may use it, so only one rank as a process",
                             fmt::format("nvidia-smi -i {} -c DEFAULT, or ranks as threads", device)));
  }
}

GpuFinding look_at_windows(const Driver& driver, int device) {
  const int virtual_memory = attribute_of(driver, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device);
  const int descriptors = attribute_of(driver, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device);
  const std::string name = fmt::format("GPU {} windows", device);
  const std::string detail = fmt::format("virtual memory: {}, handles as file descriptors: {}",
                                         yes_or_no(virtual_memory), yes_or_no(descriptors));
  if (virtual_memory != 0 && descriptors != 0) return {.capability = usable(name, detail)};
  return {.capability = unusable(name, detail, "none known: the cuda backend needs both; use the host backend")};
}

GpuFinding look_at_fabric(const Driver& driver, int device) {
  const std::string name = fmt::format("GPU {} fabric handles", device);
  const std::string not_needed = "not needed between GPUs of one machine: windows are shared by file descriptors then";
  if (attribute_of(driver, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, device) == 0)
    return remark(unusable(name, "not supported by GPU and driver", not_needed));
  const std::string reason = why_no_fabric_memory(driver, device);
  if (reason.empty()) return remark(usable(name, "memory with one can be made; windows are shared by them"));
  return remark(unusable(name, fmt::format("supported, but memory with one cannot be made: {}", reason),
                         "an IMEX channel (/dev/nvidia-caps-imex-channels/channel0); " + not_needed));
}

GpuFinding look_at_links(const Nvml& nvml, int device) {
  const std::string name = fmt::format("GPU {} NVLink", device);
  char bus_id[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device), "cudaDeviceGetPCIBusId");
  const NvLinks links = nvml.links_of(bus_id);
  if (links.active > 0) return remark(usable(name, fmt::format("{} links active", links.active)));
  if (links.active == 0)
    return remark(
        unusable(name, "no active link", "none known; without NVLink, GPUs reach each other over PCIe, slowly"));
  return remark(unusable(name, "unknown: " + links.reason,
                         "in a container, NVIDIA_DRIVER_CAPABILITIES=compute,utility brings NVML in"));
}

GpuFinding look_at_pair(const Driver& driver, int owner, int user) {
  const std::string name =
      owner == user ? fmt::format("GPU {} with itself", owner) : fmt::format("GPU {} by GPU {}", owner, user);
  std::string detail;
  if (owner != user) {
    int access = 0, atomics = 0, performance = 0;
    check_cuda(cudaDeviceGetP2PAttribute(&access, cudaDevP2PAttrAccessSupported, user, owner), "peer attributes");
    check_cuda(cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, user, owner),
               "peer attributes");
    check_cuda(cudaDeviceGetP2PAttribute(&performance, cudaDevP2PAttrPerformanceRank, user, owner), "peer attributes");
    detail = fmt::format("access: {}, native atomics: {}, performance rank {}; ", yes_or_no(access), yes_or_no(atomics),
                         performance);
  }
  try {
    return {.capability = usable(name, detail + try_window(driver, owner, user))};
  } catch (const std::exception& error) {
    cudaGetLastError();
    return {.capability =
                unusable(name, detail + error.what(),
                         "`nvidia-smi topo -p2p r` tells what is between them; an IOMMU, a virtual machine or a "
                         "fabric manager that is not running can forbid peer access")};
  }
}

/// Windows travel as descriptors over abstract sockets, which belong to the network namespace.
GpuFinding look_at_container() {
  const bool inside = ::access("/.dockerenv", F_OK) == 0 || ::access("/run/.containerenv", F_OK) == 0;
  return remark(usable("container", inside
                                        ? "inside one; ranks in several containers must share its network namespace, "
                                          "no shared /dev/shm or IPC namespace is needed"
                                        : "no sign of one"));
}

/// One thing that cannot be found out must not hide the others.
template <typename Look>
void tell_of(const Tell& tell, const std::string& name, Look&& look) {
  try {
    tell(look());
  } catch (const std::exception& error) {
    tell({.capability = unusable(name, error.what(), "see the kernel's log for NVRM and Xid lines")});
  }
}

void examine_gpu(const Tell& tell, const Driver& driver, const Nvml& nvml, int device) {
  const std::string name = fmt::format("GPU {}", device);
  tell_of(tell, name, [&] { return look_at_gpu(device); });
  tell_of(tell, name + " code", [&] { return look_at_code(device); });
  tell_of(tell, name + " compute mode", [&] { return look_at_compute_mode(device); });
  tell_of(tell, name + " windows", [&] { return look_at_windows(driver, device); });
  tell_of(tell, name + " fabric handles", [&] { return look_at_fabric(driver, device); });
  tell_of(tell, name + " NVLink", [&] { return look_at_links(nvml, device); });
}

}  // namespace

int examine_gpus(const Tell& tell) {
  int num_gpus = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_gpus);
  if (status != cudaSuccess || num_gpus == 0) {
    const cudaError_t why = status != cudaSuccess ? status : cudaErrorNoDevice;
    tell({.capability =
              unusable("GPUs", fmt::format("none to use: {} ({})", cudaGetErrorString(why), look_at_versions().detail),
                       fix_for(why))});
    return 0;
  }
  tell({.capability = look_at_versions()});
  tell(look_at_container());
  try {
    const Driver driver;
    const Nvml nvml;
    for (int device = 0; device < num_gpus; ++device) examine_gpu(tell, driver, nvml, device);
    for (int owner = 0; owner < num_gpus; ++owner) {
      for (int user = 0; user < num_gpus; ++user) {
        if (owner == user && num_gpus > 1) continue;
        const std::string name = fmt::format("GPU {} by GPU {}", owner, user);
        tell_of(tell, name, [&] { return look_at_pair(driver, owner, user); });
      }
    }
  } catch (const std::exception& error) {
    tell({.capability = unusable("NVIDIA driver functions", error.what(), "install a driver for CUDA 12 or later")});
  }
  return num_gpus;
}

}  // namespace ferry::app
