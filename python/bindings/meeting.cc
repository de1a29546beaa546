// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The class ferry.Meeting and the functions that make one.
#include "meeting.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "bindings.h"
#include "errors.h"
#include "values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ferry::python {
namespace {

using Bytes = std::vector<std::byte>;

std::span<const std::byte> span_of(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
}

nb::bytes to_bytes(std::span<const std::byte> data) {
  return nb::bytes(data.data(), data.size());
}

std::unique_ptr<PyMeeting> wrap(std::unique_ptr<Meeting> meeting) {
  auto wrapped = std::make_unique<PyMeeting>();
  wrapped->meeting = std::move(meeting);
  return wrapped;
}

nb::list in_process(int size) {
  nb::list meetings;
  for (auto& meeting : meet_in_process(size)) meetings.append(nb::cast(wrap(std::move(meeting))));
  return meetings;
}

std::unique_ptr<PyMeeting> over_tcp(int rank, int size, const std::string& address, int port, const std::string& token,
                                    double timeout) {
  constexpr const char* kFunction = "ferry.meet_over_tcp";
  if (port < 1 || port > 65535) refuse(kFunction, "port", std::to_string(port), "1 to 65535");
  const TcpMeeting where{.rank = rank,
                         .size = size,
                         .address = address,
                         .port = static_cast<std::uint16_t>(port),
                         .token = token,
                         .timeout = parse_timeout(kFunction, timeout)};
  nb::gil_scoped_release release;
  return wrap(meet_over_tcp(where));
}

std::unique_ptr<PyMeeting> from_environment() {
  nb::gil_scoped_release release;
  return wrap(meet_from_environment());
}

/// A Python callable as an AllGather. The GIL is taken for the call, and for letting go of the callable.
class PythonAllGather {
 public:
  PythonAllGather(nb::callable callable, int size)
      : callable_(new nb::callable(std::move(callable)), &release_with_gil), size_(size) {}

  std::vector<Bytes> operator()(std::span<const std::byte> mine) const {
    nb::gil_scoped_acquire acquire;
    return read((*callable_)(to_bytes(mine)));
  }

 private:
  static void release_with_gil(nb::callable* callable) {
    nb::gil_scoped_acquire acquire;
    delete callable;
  }

  std::vector<Bytes> read(nb::handle answer) const {
    const std::string expected = "a sequence of " + std::to_string(size_) + " bytes objects, by rank";
    if (!nb::isinstance<nb::sequence>(answer) || PyUnicode_Check(answer.ptr()) || PyBytes_Check(answer.ptr())) {
      refuse_answer(std::string("of type ") + nb::type_name(answer.type()).c_str(), expected);
    }
    if (nb::len(answer) != static_cast<std::size_t>(size_)) {
      refuse_answer("a sequence of " + std::to_string(nb::len(answer)), expected);
    }
    std::vector<Bytes> all;
    for (nb::handle item : answer) all.push_back(read_bytes(item, expected));
    return all;
  }

  static Bytes read_bytes(nb::handle item, const std::string& expected) {
    nb::object bytes = nb::steal(PyObject_CheckBuffer(item.ptr()) ? PyBytes_FromObject(item.ptr()) : nullptr);
    if (!bytes.is_valid()) {
      PyErr_Clear();
      refuse_answer(std::string("a sequence that holds ") + nb::type_name(item.type()).c_str(), expected);
    }
    const auto data = span_of(nb::borrow<nb::bytes>(bytes));
    return {data.begin(), data.end()};
  }

  [[noreturn]] static void refuse_answer(const std::string& seen, const std::string& expected) {
    refuse("ferry.meet_through", "what all_gather returned", seen, expected);
  }

  std::shared_ptr<nb::callable> callable_;
  int size_;
};

std::unique_ptr<PyMeeting> through(int rank, int size, nb::callable all_gather) {
  return wrap(meet_through(rank, size, PythonAllGather(std::move(all_gather), size)));
}

std::vector<nb::bytes> all_gather(PyMeeting& self, const nb::bytes& mine, double timeout) {
  const auto limit = parse_timeout("ferry.Meeting.all_gather", timeout);
  const auto turn = self.use.enter("ferry.Meeting.all_gather");
  std::vector<Bytes> all;
  {
    nb::gil_scoped_release release;
    all = self.meeting->all_gather(span_of(mine), limit);
  }
  std::vector<nb::bytes> result;
  for (const Bytes& bytes : all) result.push_back(to_bytes(bytes));
  return result;
}

}  // namespace

void bind_meeting(nb::module_& module) {
  nb::class_<PyMeeting>(
      module, "Meeting",
      "A meeting place of ranks; used while a group is made, not afterwards. Made by the meet_ functions.")
      .def_prop_ro("rank", [](const PyMeeting& self) { return self.meeting->rank(); })
      .def_prop_ro("size", [](const PyMeeting& self) { return self.meeting->size(); })
      .def("all_gather", &all_gather, "mine"_a, "timeout"_a = 60.0,
           "Everybody's bytes, by rank; sizes may differ. Collective. Raises Error(\"bootstrap\" or \"timeout\") that "
           "names the "
           "ranks that did not come within `timeout` seconds.");
  module.def("meet_in_process", &in_process, "size"_a, nb::sig("def meet_in_process(size: int) -> list[Meeting]"),
             "Meeting places for ranks that are threads of this process: element r belongs to rank r.");
  module.def(
      "meet_over_tcp", &over_tcp, "rank"_a, "size"_a, nb::kw_only(), "address"_a = "127.0.0.1", "port"_a,
      "token"_a = "", "timeout"_a = 60.0,
      "Rank 0 listens at address:port, the others connect and retry until `timeout` seconds have passed. token: shared "
      "secret of the job; strangers without it are turned away. Raises Error(\"bootstrap\" or \"timeout\").");
  module.def(
      "meet_from_environment", &from_environment,
      "Reads RANK, WORLD_SIZE, MASTER_ADDR, FERRY_PORT (default: MASTER_PORT + 1) and FERRY_TOKEN, as torchrun and "
      "python -m ferry.launch set them. Without RANK and WORLD_SIZE: one rank alone.");
  module.def(
      "meet_through", &through, "rank"_a, "size"_a, "all_gather"_a,
      nb::sig("def meet_through(rank: int, size: int, "
              "all_gather: collections.abc.Callable[[bytes], collections.abc.Sequence[bytes]]) -> Meeting"),
      "Uses an all-gather that the caller has (torch.distributed, mpi4py, ...): all_gather(mine) returns everybody's "
      "bytes, by rank. It is called on the thread that makes the group and may raise; its own timeout applies.");
}

}  // namespace ferry::python
