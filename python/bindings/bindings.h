// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The functions that add one class (or a handful of small values) each to the extension module.
#pragma once

#include <nanobind/nanobind.h>

namespace ferry::python {

void bind_errors(nanobind::module_& module);
void bind_array(nanobind::module_& module);
void bind_reduction(nanobind::module_& module);
void bind_topology(nanobind::module_& module);
void bind_placement(nanobind::module_& module);
void bind_meeting(nanobind::module_& module);
void bind_config(nanobind::module_& module);
void bind_plans(nanobind::module_& module);
void bind_handle(nanobind::module_& module);
void bind_dispatch(nanobind::module_& module);
void bind_combine(nanobind::module_& module);
void bind_group(nanobind::module_& module);
void bind_capability(nanobind::module_& module);
void bind_probe(nanobind::module_& module);

}  // namespace ferry::python
