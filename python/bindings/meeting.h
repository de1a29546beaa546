// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A meeting as Python holds it.
#pragma once

#include <memory>

#include "ferry/meeting.h"
#include "group_use.h"

namespace ferry::python {

struct PyMeeting {
  std::unique_ptr<Meeting> meeting;
  OneAtATime use;
};

}  // namespace ferry::python
