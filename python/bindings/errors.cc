// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// ferry::Error becomes the Python class ferry.Error with the same fields. The class is written in Python
// (ferry/errors.py) and looked up when the first error is raised.
#include "errors.h"

#include <nanobind/nanobind.h>

#include "bindings.h"

namespace nb = nanobind;

namespace ferry::python {
namespace {

nb::object to_python(const Error& error) {
  nb::module_ module = nb::module_::import_("ferry.errors");
  nb::object peer_wait = module.attr("PeerWait");
  nb::list peers;
  for (const PeerWait& peer : error.peers) {
    peers.append(peer_wait(peer.rank, peer.seen, peer.wanted, nb::str(peer.activity.data(), peer.activity.size())));
  }
  return module.attr("Error")(nb::str(error.what()), name(error.code()), nb::str(error.step.data(), error.step.size()),
                              error.epoch, nb::tuple(peers), nb::str(error.argument.data(), error.argument.size()),
                              error.needed_rows);
}

void raise(const Error& error) {
  try {
    nb::object exception = to_python(error);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  } catch (nb::python_error& failed) {
    failed.restore();  // e.g. no memory for the exception
  }
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    raise(error);
  }
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator(translate);
}

}  // namespace ferry::python
