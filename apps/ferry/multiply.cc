// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's matrix product: vectors run along the outputs, so that the sum over the inputs keeps its order.
#include "multiply.h"

#include <cstddef>
#include <cstring>
#include <utility>

namespace ferry::app {
namespace {

template <class Real>
struct Vector {
  static constexpr std::int64_t kLanes = 16 / sizeof(Real);
  typedef Real Type __attribute__((vector_size(16)));
};

template <class Real>
typename Vector<Real>::Type load(const Real* from) {
  typename Vector<Real>::Type lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

/// One row times `V...` vectors of outputs; the sums stay in registers. Written as pack expansions, because compilers
/// unroll small loops over arrays at -O2 only sometimes, and the sums would live in memory.
template <class Real, std::size_t... V>
void multiply_one_row(const Real* in, std::int64_t depth, const Real* weights, std::int64_t width, Real* out,
                      std::index_sequence<V...>) {
  constexpr std::size_t kLanes = Vector<Real>::kLanes;
  typename Vector<Real>::Type sums[sizeof...(V)] = {};
  for (std::int64_t i = 0; i < depth; ++i) {
    ((sums[V] += in[i] * load(weights + i * width + V * kLanes)), ...);
  }
  (std::memcpy(out + V * kLanes, &sums[V], sizeof(sums[V])), ...);
}

/// Two rows at a time: each vector of weights is loaded once for both.
template <class Real, std::size_t... V>
void multiply_two_rows(const Real* in, std::int64_t depth, const Real* weights, std::int64_t width, Real* out,
                       std::index_sequence<V...>) {
  constexpr std::size_t kLanes = Vector<Real>::kLanes;
  typename Vector<Real>::Type first[sizeof...(V)] = {};
  typename Vector<Real>::Type second[sizeof...(V)] = {};
  for (std::int64_t i = 0; i < depth; ++i) {
    const typename Vector<Real>::Type column[] = {load(weights + i * width + V * kLanes)...};
    ((first[V] += in[i] * column[V], second[V] += in[depth + i] * column[V]), ...);
  }
  (std::memcpy(out + V * kLanes, &first[V], sizeof(first[V])), ...);
  (std::memcpy(out + width + V * kLanes, &second[V], sizeof(second[V])), ...);
}

template <class Real>
void multiply_column(const Real* in, std::int64_t rows, std::int64_t depth, const Real* weights, std::int64_t width,
                     Real* out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    Real sum = 0;
    for (std::int64_t i = 0; i < depth; ++i) sum += in[r * depth + i] * weights[i * width];
    out[r * width] = sum;
  }
}

template <class Real, std::size_t Vectors>
void multiply_stripe(const Real* in, std::int64_t rows, std::int64_t depth, const Real* weights, std::int64_t width,
                     Real* out) {
  constexpr auto kVectors = std::make_index_sequence<Vectors>();
  std::int64_t r = 0;
  for (; r + 2 <= rows; r += 2) multiply_two_rows(in + r * depth, depth, weights, width, out + r * width, kVectors);
  for (; r < rows; ++r) multiply_one_row(in + r * depth, depth, weights, width, out + r * width, kVectors);
}

}  // namespace

template <class Real>
void multiply(const Real* in, std::int64_t rows, std::int64_t depth, const Real* weights, std::int64_t width,
              Real* out) {
  constexpr std::int64_t kLanes = Vector<Real>::kLanes;
  std::int64_t o = 0;
  for (; o + 4 * kLanes <= width; o += 4 * kLanes)
    multiply_stripe<Real, 4>(in, rows, depth, weights + o, width, out + o);
  for (; o + kLanes <= width; o += kLanes) multiply_stripe<Real, 1>(in, rows, depth, weights + o, width, out + o);
  for (; o < width; ++o) multiply_column(in, rows, depth, weights + o, width, out + o);
}

template <class Real>
std::vector<Real> transposed(const Real* in, std::int64_t rows, std::int64_t width) {
  std::vector<Real> out(static_cast<std::size_t>(rows * width));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) out[static_cast<std::size_t>(c * rows + r)] = in[r * width + c];
  }
  return out;
}

template <class Real>
Real ordered_dot(const Real* a, const Real* b, std::int64_t count) {
  Real sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

template void multiply(const float*, std::int64_t, std::int64_t, const float*, std::int64_t, float*);
template void multiply(const double*, std::int64_t, std::int64_t, const double*, std::int64_t, double*);
template std::vector<float> transposed(const float*, std::int64_t, std::int64_t);
template std::vector<double> transposed(const double*, std::int64_t, std::int64_t);
template float ordered_dot(const float*, const float*, std::int64_t);
template double ordered_dot(const double*, const double*, std::int64_t);

}  // namespace ferry::app
