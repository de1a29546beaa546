// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Host memory for windows: anonymous mappings for threads, sealed memfds for processes.
#include "bootstrap/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <utility>

#include "bootstrap/failure.h"
#include "bootstrap/fd.h"
#include "core/check.h"

namespace ferry {
namespace {

using bootstrap::describe_errno;
using bootstrap::failure;
using bootstrap::Fd;

// Nobody can shorten or lengthen the file, nor lift these seals: a peer cannot make us fault by truncating it.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW;

std::size_t round_to_pages(const char* function, std::size_t bytes) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t most = static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()) - page_bytes;
  if (bytes > most) refuse(function, "bytes", fmt::format("{}", bytes), fmt::format("at most {}", most));
  return bytes == 0 ? page_bytes : (bytes + page_bytes - 1) / page_bytes * page_bytes;
}

std::byte* map_pages(const char* function, std::size_t mapped_bytes, int flags, int fd) {
  // Windows are sized for the worst case and touched lazily: no swap is reserved for pages that are never written.
  void* data = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) {
    throw failure(ErrorCode::kInternal,
                  fmt::format("{}: cannot map {} bytes: {}", function, mapped_bytes, describe_errno(errno)));
  }
  return static_cast<std::byte*>(data);
}

void check_file_limit(const char* function, std::size_t file_bytes) {
  // Growing a file beyond this limit raises SIGXFSZ, which would end the process.
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && file_bytes > limit.rlim_cur) {
    throw failure(ErrorCode::kInternal,
                  fmt::format("{}: {} bytes are more than the file size limit of {} bytes (ulimit -f)", function,
                              file_bytes, static_cast<std::uint64_t>(limit.rlim_cur)));
  }
}

}  // namespace

std::shared_ptr<Memory> Memory::anonymous(std::size_t bytes) {
  const char* const function = "ferry::Memory::anonymous";
  const std::size_t mapped_bytes = round_to_pages(function, bytes);
  std::byte* data = map_pages(function, mapped_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  return std::shared_ptr<Memory>(new Memory(data, bytes == 0 ? mapped_bytes : bytes, -1));
}

std::shared_ptr<Memory> Memory::shareable(std::size_t bytes) {
  const char* const function = "ferry::Memory::shareable";
  const std::size_t mapped_bytes = round_to_pages(function, bytes);
  check_file_limit(function, mapped_bytes);
  Fd fd(memfd_create("ferry-window", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) throw failure(ErrorCode::kInternal, fmt::format("{}: memfd_create: {}", function, describe_errno(errno)));
  if (ftruncate(fd.get(), static_cast<off_t>(mapped_bytes)) != 0) {
    throw failure(ErrorCode::kInternal,
                  fmt::format("{}: ftruncate to {} bytes: {}", function, mapped_bytes, describe_errno(errno)));
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    throw failure(ErrorCode::kInternal, fmt::format("{}: sealing: {}", function, describe_errno(errno)));
  }
  std::byte* data = map_pages(function, mapped_bytes, MAP_SHARED, fd.get());
  return std::shared_ptr<Memory>(new Memory(data, bytes == 0 ? mapped_bytes : bytes, fd.release()));
}

std::shared_ptr<Memory> Memory::map(int taken_fd, std::size_t bytes) {
  const char* const function = "ferry::Memory::map";
  Fd fd(taken_fd);
  const std::size_t mapped_bytes = round_to_pages(function, bytes);
  struct stat file {};
  if (fstat(fd.get(), &file) != 0) {
    refuse(function, "fd", fmt::format("{}: {}", taken_fd, describe_errno(errno)), "an open memfd");
  }
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (!S_ISREG(file.st_mode) || seals < 0 || (seals & kNeededSeals) != kNeededSeals) {
    refuse(function, "fd", "not a memfd of fixed size", "a memfd sealed against shrinking and growing");
  }
  if (static_cast<std::size_t>(file.st_size) != mapped_bytes) {
    refuse(function, "bytes", fmt::format("{} ({} in pages)", bytes, mapped_bytes),
           fmt::format("{}, the size of the file", static_cast<std::int64_t>(file.st_size)));
  }
  std::byte* data = map_pages(function, mapped_bytes, MAP_SHARED, fd.get());
  return std::shared_ptr<Memory>(new Memory(data, bytes == 0 ? mapped_bytes : bytes, fd.release()));
}

std::shared_ptr<Memory> Memory::on_device(std::byte* data, std::size_t bytes, std::shared_ptr<const void> owner) {
  return std::shared_ptr<Memory>(new Memory(data, bytes, -1, std::move(owner)));
}

Memory::~Memory() {
  if (is_on_device()) return;
  munmap(data_, round_to_pages("Memory", size_));
  if (fd_ >= 0) close(fd_);
}

}  // namespace ferry
