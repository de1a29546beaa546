// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Looks at the machine: what of Ferry can run here, and what would help where it cannot. Everything is tried and
// undone.
#include "ferry/capability.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "net/engine.h"

#ifndef FERRY_VERSION
#define FERRY_VERSION "unknown"
#endif

namespace ferry {
namespace {

constexpr std::size_t kTrialBytes = 1 << 16;

/// Owns a descriptor for the length of a trial.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }

 private:
  int fd_;
};

Capability usable(std::string name, std::string detail) {
  return {std::move(name), true, std::move(detail), ""};
}
Capability unusable(std::string name, std::string detail, std::string fix) {
  return {std::move(name), false, std::move(detail), std::move(fix)};
}
std::string last_error() {
  return std::strerror(errno);
}

/// Maps the memory behind `fd`, and gives what its first byte was; writes `mark` there. Empty if it cannot be mapped.
std::optional<std::uint8_t> touch(int fd, std::uint8_t mark) {
  void* data = ::mmap(nullptr, kTrialBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return std::nullopt;
  auto* first = static_cast<std::uint8_t*>(data);
  const std::uint8_t seen = *first;
  *first = mark;
  ::munmap(data, kTrialBytes);
  return seen;
}

Capability try_shared_memory() {
  const char* name = "shared memory";
  const Descriptor memory(::memfd_create("ferry-trial", MFD_CLOEXEC));
  if (!memory.open())
    return unusable(name, "memfd_create: " + last_error(),
                    "allow memfd_create (Linux 3.17 or newer; a sandbox may forbid it)");
  if (::ftruncate(memory.get(), kTrialBytes) != 0 || !touch(memory.get(), 7)) {
    return unusable(name, "a memfd cannot be mapped: " + last_error(),
                    "give this process more memory (limits of the user or the container)");
  }
  if (touch(memory.get(), 0) != 7)
    return unusable(name, "a second mapping of a memfd shows other bytes", "report this; the kernel is at fault");
  return usable(name, "memfd can be created and mapped twice; nothing is left behind after a crash");
}

/// Sends the descriptor `fd` through a socket; false with errno set.
bool send_descriptor(int socket, int fd) {
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(head), &fd, sizeof(fd));
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

int receive_descriptor(int socket) {
  char byte = 0;
  iovec data{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1) return -1;
  const cmsghdr* head = CMSG_FIRSTHDR(&message);
  if (head == nullptr || head->cmsg_type != SCM_RIGHTS) return -1;
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(head), sizeof(fd));
  return fd;
}

Capability try_memory_handover() {
  const char* name = "memory between processes";
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return unusable(name, "socketpair: " + last_error(),
                    "raise the limit of open files (ulimit -n), or allow Unix sockets");
  }
  const Descriptor near(ends[0]);
  const Descriptor far(ends[1]);
  const Descriptor memory(::memfd_create("ferry-trial", MFD_CLOEXEC));
  if (!memory.open() || ::ftruncate(memory.get(), kTrialBytes) != 0)
    return unusable(name, "no shared memory", "see shared memory");
  if (!send_descriptor(near.get(), memory.get()))
    return unusable(name, "sendmsg: " + last_error(), "allow descriptors over Unix sockets");
  const Descriptor received(receive_descriptor(far.get()));
  if (!received.open())
    return unusable(name, "no descriptor arrived: " + last_error(), "allow descriptors over Unix sockets");
  touch(received.get(), 9);
  if (touch(memory.get(), 0) != 9)
    return unusable(name, "memory that was handed over shows other bytes", "report this; the kernel is at fault");
  return usable(name, "a memfd passes through a Unix socket");
}

Capability try_abstract_socket() {
  const char* name = "abstract Unix sockets";
  const Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.open()) return unusable(name, "socket: " + last_error(), "allow Unix sockets");
  // Only the family: the kernel picks a free name in the abstract namespace.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(sa_family_t)) != 0 ||
      ::listen(socket.get(), 1) != 0) {
    return unusable(name, "bind: " + last_error(),
                    "allow sockets in the abstract namespace; until then run ranks as threads");
  }
  return usable(name, "processes of this machine can meet");
}

/// A number in kB from /proc/meminfo, in bytes; -1 if it is not there.
std::int64_t meminfo_bytes(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  std::int64_t value = 0;
  while (file >> word) {
    if (word == key + ":" && file >> value) return value * 1024;
  }
  return -1;
}

/// What the control group still lets this process take; -1 if there is no limit or it cannot be read.
std::int64_t cgroup_left_bytes() {
  std::int64_t limit = 0;
  std::int64_t used = 0;
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::ifstream used_file("/sys/fs/cgroup/memory.current");
  if (!(limit_file >> limit) || !(used_file >> used)) return -1;  // "max" is no number
  return limit > used ? limit - used : 0;
}

Capability look_at_free_memory() {
  const char* name = "memory for windows";
  constexpr std::int64_t kSmall = 256 << 20;
  std::int64_t free_bytes = meminfo_bytes("MemAvailable");
  const std::int64_t left = cgroup_left_bytes();
  if (left >= 0 && (free_bytes < 0 || left < free_bytes)) free_bytes = left;
  if (free_bytes < 0) return usable(name, "unknown: /proc/meminfo cannot be read");
  const std::string detail =
      fmt::format("{:.1f} GB free{}", static_cast<double>(free_bytes) / 1e9, left >= 0 ? " in this control group" : "");
  if (free_bytes < kSmall)
    return unusable(name, detail, "free memory, or plan smaller windows; `ferry plan` says what a configuration needs");
  return usable(name, detail);
}

std::string limit_text(rlim_t limit) {
  return limit == RLIM_INFINITY ? "unlimited" : fmt::format("{} bytes", limit);
}

Capability look_at_locked_memory() {
  const char* name = "locked memory";
  constexpr rlim_t kEnough = rlim_t{1} << 30;
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return unusable(name, "getrlimit: " + last_error(), "none known");
  const std::string detail =
      limit_text(limit.rlim_cur) + (limit.rlim_cur == limit.rlim_max ? "" : ", at most " + limit_text(limit.rlim_max));
  if (limit.rlim_cur >= kEnough) return usable(name, detail);
  return unusable(
      name, detail + "; network cards need windows to be locked (the host backend does not)",
      "ulimit -l unlimited, or memlock in /etc/security/limits.conf, or --ulimit memlock=-1 for a container");
}

Capability look_at_open_files() {
  const char* name = "open files";
  constexpr rlim_t kEnough = 1024;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return unusable(name, "getrlimit: " + last_error(), "none known");
  const std::string detail =
      fmt::format("{} at most", limit.rlim_cur == RLIM_INFINITY ? "any number" : std::to_string(limit.rlim_cur));
  if (limit.rlim_cur >= kEnough) return usable(name, detail + "; a rank needs a few for each rank of its machine");
  return unusable(name, detail, "ulimit -n 4096");
}

Capability look_at_cores() {
  const unsigned cores = std::thread::hardware_concurrency();
  if (cores == 0) return usable("cores", "unknown");
  return usable("cores",
                fmt::format("{}; more ranks than that run correctly, but take turns, and waits cost more", cores));
}

/// A library opened for the length of a look.
struct LibraryCloser {
  void operator()(void* library) const { ::dlclose(library); }
};
using Library = std::unique_ptr<void, LibraryCloser>;

template <class Function>
Function find(const Library& library, const char* symbol) {
  return reinterpret_cast<Function>(::dlsym(library.get(), symbol));
}

Capability look_at_libfabric() {
  const char* name = "libfabric";
  std::string why_not;
  const std::string version = net::network_library(why_not);
  if (version.empty()) return unusable(name, why_not, "needed for nodes on several machines only");
  return usable(name,
                version +
                    " found, opened when a group spans nodes over its networks; for backend host: GPU memory is not "
                    "registered with it and not staged through host memory");
}

/// One finding per network that groups can be made with.
std::vector<Capability> look_at_networks() {
  std::vector<Capability> found;
  for (const net::Provider& one : net::find_networks()) {
    const std::string name = "network " + one.name;
    found.push_back(one.why_not.empty() ? usable(name, one.detail)
                                        : unusable(name, one.why_not, "needed for nodes on several machines only"));
  }
  return found;
}

int num_gpus() {
  int count = 0;
  DIR* directory = ::opendir("/proc/driver/nvidia/gpus");
  if (directory == nullptr) return 0;
  while (const dirent* entry = ::readdir(directory)) count += entry->d_name[0] != '.' ? 1 : 0;
  ::closedir(directory);
  return count;
}

Capability look_at_driver() {
  const char* name = "NVIDIA driver";
  const Library library(::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL));
  if (!library) return unusable(name, ::dlerror(), "install the NVIDIA driver; needed for GPUs only");
  const auto get_version = find<int (*)(int*)>(library, "cuDriverGetVersion");
  int version = 0;
  if (get_version == nullptr || get_version(&version) != 0)
    return unusable(name, "libcuda.so.1 does not answer", "reinstall the NVIDIA driver");
  return usable(name, fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10));
}

Capability look_at_peers() {
  const int count = num_gpus();
  if (count == 0) return unusable("GPU peers", "this machine has no NVIDIA GPU", "none needed for the host backend");
  if (count == 1) return unusable("GPU peers", "one NVIDIA GPU, no other to reach", "none needed for the host backend");
  return usable("GPU peers", fmt::format("{} NVIDIA GPUs; which reach which is found out when a group is made", count));
}

Capability look_at_cuda_backend() {
#ifdef FERRY_HAS_CUDA
  const int count = num_gpus();
  if (count == 0)
    return unusable("backend cuda", "built, but this machine has no NVIDIA GPU",
                    "use a machine with one, or the host backend");
  return usable("backend cuda", fmt::format("built; {} NVIDIA GPU{}", count, count == 1 ? "" : "s"));
#else
  return unusable("backend cuda", "not in this build", "build Ferry where nvcc is found, with FERRY_CUDA=ON");
#endif
}

Capability judge_host_backend(const Capability& memory) {
  if (!memory.usable) return unusable("backend host", "needs shared memory: " + memory.detail, memory.fix);
  return usable("backend host", "ranks as threads or processes of this machine");
}

}  // namespace

std::vector<Capability> capabilities() {
  const Capability memory = try_shared_memory();
  std::vector<Capability> found = look_at_networks();
  found.insert(found.begin(), {judge_host_backend(memory), look_at_cuda_backend()});
  found.insert(found.end(),
               {memory, try_memory_handover(), try_abstract_socket(), look_at_free_memory(), look_at_locked_memory(),
                look_at_open_files(), look_at_cores(), look_at_libfabric(), look_at_driver(), look_at_peers()});
  return found;
}

const char* version() noexcept {
  return FERRY_VERSION;
}

}  // namespace ferry
