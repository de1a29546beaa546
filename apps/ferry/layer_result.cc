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

/// Every field in order: the same for both ways.
template <class Archive, class Result>
void each_field(Archive& archive, Result& result) {
  archive.list(result.out);
  archive.list(result.x_gradients);
  archive.list(result.weight_gradients);
  archive.list(result.expert_digests);
  archive.value(result.gate_digest);
  archive.list(result.expert_rows);
  archive.trace(result.forward);
  archive.trace(result.backward);
  archive.value(result.expert_seconds);
}

}  // namespace

std::vector<std::byte> pack(const LayerResult& result) {
  Writer writer;
  each_field(writer, result);
  return writer.take();
}

LayerResult unpack_layer_result(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  LayerResult result;
  each_field(reader, result);
  return result;
}

}  // namespace ferry::app
