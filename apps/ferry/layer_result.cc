// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Layer results as bytes, for the trip from a rank's process to the program that started it.
#include <cstring>
#include <stdexcept>

#include "layer.h"

namespace ferry::app {
namespace {

class Writer {
 public:
  template <class Value>
  void value(const Value& v) {
    const auto bytes = std::as_bytes(std::span(&v, 1));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  template <class List>
  void list(const List& values) {
    value(static_cast<std::uint64_t>(values.size()));
    const auto bytes = std::as_bytes(std::span(values));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void trace(const std::vector<StepTrace>& steps) {
    value(static_cast<std::uint64_t>(steps.size()));
    for (const StepTrace& step : steps) {
      list(step.step);
      value(step.rows);
      value(step.bytes);
      value(step.seconds);
    }
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class Value>
  void value(Value& v) {
    copy(&v, sizeof(v));
  }
  template <class List>
  void list(List& values) {
    values.resize(size(sizeof(values[0])));
    copy(values.data(), values.size() * sizeof(values[0]));
  }
  void trace(std::vector<StepTrace>& steps) {
    steps.resize(size(1));
    for (StepTrace& step : steps) {
      list(step.step);
      value(step.rows);
      value(step.bytes);
      value(step.seconds);
    }
  }

 private:
  std::size_t size(std::size_t element_bytes) {
    std::uint64_t count = 0;
    value(count);
    if (count > bytes_.size() / element_bytes) throw std::runtime_error("a rank's result is cut short");
    return static_cast<std::size_t>(count);
  }
  void copy(void* to, std::size_t count) {
    if (count > bytes_.size()) throw std::runtime_error("a rank's result is cut short");
    if (count != 0) std::memcpy(to, bytes_.data(), count);
    bytes_ = bytes_.subspan(count);
  }
  std::span<const std::byte> bytes_;
};

}  // namespace

std::vector<std::byte> pack(const LayerResult& result) {
  Writer writer;
  writer.list(result.out);
  writer.list(result.x_gradients);
  writer.list(result.weight_gradients);
  writer.list(result.expert_digests);
  writer.value(result.gate_digest);
  writer.list(result.expert_rows);
  writer.trace(result.forward);
  writer.trace(result.backward);
  writer.value(result.expert_seconds);
  return writer.take();
}

LayerResult unpack_layer_result(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  LayerResult result;
  reader.list(result.out);
  reader.list(result.x_gradients);
  reader.list(result.weight_gradients);
  reader.list(result.expert_digests);
  reader.value(result.gate_digest);
  reader.list(result.expert_rows);
  reader.trace(result.forward);
  reader.trace(result.backward);
  reader.value(result.expert_seconds);
  return result;
}

}  // namespace ferry::app
