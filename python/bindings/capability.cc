// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// ferry.capabilities() and the version.
#include "ferry/capability.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace nb = nanobind;

namespace ferry::python {

void bind_capability(nb::module_& module) {
  nb::class_<Capability>(module, "Capability", "One thing that this build can or cannot do on this machine.")
      .def_ro("name", &Capability::name)
      .def_ro("usable", &Capability::usable)
      .def_ro("detail", &Capability::detail, "What was found, or the reason why not.")
      .def_ro("fix", &Capability::fix, "What would help; empty if usable.")
      .def("__repr__", [](const Capability& self) {
        return "ferry.Capability(\"" + self.name + "\", " + (self.usable ? "usable" : "not usable") + ": " +
               self.detail + ")";
      });
  module.def("capabilities", &capabilities, nb::call_guard<nb::gil_scoped_release>(),
             "Looks at the machine; starts nothing and leaves nothing behind.");
  module.def("version", &version, "The library's version, e.g. \"0.1.0\".");
}

}  // namespace ferry::python
