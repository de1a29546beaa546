// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's one matrix product. Every element is a sum in a fixed order, so a row gets the same bits whatever batch it
// is in.
#pragma once

#include <cstdint>
#include <vector>

namespace ferry::app {

/// out[r][o] = sum of in[r][i] * weights[i][o] over i ascending, from +0, every product and every sum rounded once.
/// in [rows, depth], weights [depth, width], out [rows, width], all contiguous. `Real` is float or double.
template <class Real>
void multiply(const Real* in, std::int64_t rows, std::int64_t depth, const Real* weights, std::int64_t width,
              Real* out);

/// The transpose of a contiguous [rows, width] matrix.
template <class Real>
std::vector<Real> transposed(const Real* in, std::int64_t rows, std::int64_t width);

/// Sum of a[i] * b[i] over i ascending, from +0.
template <class Real>
Real ordered_dot(const Real* a, const Real* b, std::int64_t count);

}  // namespace ferry::app
