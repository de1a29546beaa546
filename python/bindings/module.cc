// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The extension module `ferry._ferry`. Loading it makes types and nothing else: no thread, no socket, no look at the
// environment or at a device.
#include <nanobind/nanobind.h>

#include "bindings.h"

NB_MODULE(_ferry, module) {
  module.doc() = "Ferry's C++ library for Python. Use the names that `import ferry` gives.";
  ferry::python::bind_errors(module);
  ferry::python::bind_array(module);
  ferry::python::bind_reduction(module);
  ferry::python::bind_topology(module);
  ferry::python::bind_placement(module);
  ferry::python::bind_meeting(module);
  ferry::python::bind_config(module);
  ferry::python::bind_plans(module);
  ferry::python::bind_handle(module);
  ferry::python::bind_dispatch(module);
  ferry::python::bind_combine(module);
  ferry::python::bind_group(module);
  ferry::python::bind_capability(module);
  ferry::python::bind_probe(module);
}
