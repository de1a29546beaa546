// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// All of Ferry: one include for those who do not mind.
#pragma once

#include "ferry/capability.h"
#include "ferry/combine.h"
#include "ferry/dispatch.h"
#include "ferry/error.h"
#include "ferry/group.h"
#include "ferry/handle.h"
#include "ferry/meeting.h"
#include "ferry/netcheck.h"
#include "ferry/placement.h"
#include "ferry/topology.h"
#include "ferry/types.h"
