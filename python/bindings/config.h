// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Keyword arguments to a GroupConfig.
#pragma once

#include <nanobind/nanobind.h>

#include "ferry/group.h"

namespace ferry::python {

/// What `ferry.GroupConfig(**keywords)` makes; TypeError for unknown names.
GroupConfig make_config(const nanobind::kwargs& keywords);

}  // namespace ferry::python
