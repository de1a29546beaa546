// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The few CUDA calls that the bindings make themselves. In a build without CUDA there are no groups on a GPU, and nobody
// gets here.
#pragma once

namespace ferry::python {

/// This thread's current GPU; -1 if there is none.
int current_device();

/// Work that is put on `later` from now on waits, on the GPU, for what is on `earlier` now; both are streams of `device`.
/// Nothing waits on the host. Between a stream that is being captured and one that is not (or not into the same graph)
/// nothing is ordered: the work of a graph does not run now, and cannot wait for work outside.
/// Throws Error(internal) with CUDA's words.
void make_follow(int device, void* later, void* earlier);

/// Work on this stream goes into a graph.
bool is_captured(int device, void* stream);

}  // namespace ferry::python
