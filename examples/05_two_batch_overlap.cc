// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-batch overlap on a host: see two_batches.h. With --json FILE it writes its timeline, which benchmarks/timeline.py draws.
#include <cstring>
#include <deque>

#include "two_batches.h"

namespace {

/// Plain loops over host memory; x W stands for what a layer computes.
class Host : public example::Machine {
 public:
  explicit Host(std::int64_t hidden) : hidden_(hidden), matrix_(static_cast<std::size_t>(hidden * hidden)) {
    for (std::int64_t i = 0; i < hidden * hidden; ++i)
      matrix_[static_cast<std::size_t>(i)] = static_cast<float>(i * 5 % 16) / (8.0f * static_cast<float>(hidden));
  }

  const char* backend() const override { return "host"; }
  int device() const override { return -1; }
  void* stream() const override { return nullptr; }
  void* allocate(std::size_t bytes) override { return memory_.emplace_back(bytes).data(); }
  void put(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void fetch(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }

  void attention(float* x, std::int64_t tokens) override {
    std::vector<float> out(static_cast<std::size_t>(tokens * hidden_));
    multiply(x, out.data(), tokens, 1.0f);
    std::copy(out.begin(), out.end(), x);
  }
  void experts(const float* rows, const std::int32_t* counts, float* y, int num_local, std::int64_t capacity) override {
    for (int e = 0; e < num_local; ++e) {
      const std::int64_t first = e * capacity * hidden_;
      multiply(rows + first, y + first, counts[e], 1.0f + 0.125f * static_cast<float>(e));
    }
  }

  void forget() override { marks_.clear(); }
  int mark() override {
    marks_.push_back(std::chrono::steady_clock::now());
    return static_cast<int>(marks_.size()) - 1;
  }
  double microseconds_at(int mark) override {
    const auto since = marks_[static_cast<std::size_t>(mark)] - marks_.front();
    return std::chrono::duration<double, std::micro>(since).count();
  }
  void wait() override {}

 private:
  void multiply(const float* rows, float* out, std::int64_t count, float scale) const {
    for (std::int64_t t = 0; t < count; ++t) {
      float* sums = out + t * hidden_;
      std::fill(sums, sums + hidden_, 0.0f);
      for (std::int64_t i = 0; i < hidden_; ++i) {
        const float value = rows[t * hidden_ + i] * scale;
        const float* line = &matrix_[static_cast<std::size_t>(i * hidden_)];
        for (std::int64_t j = 0; j < hidden_; ++j) sums[j] += value * line[j];
      }
    }
  }

  const std::int64_t hidden_;
  std::vector<float> matrix_;
  std::deque<std::vector<std::byte>> memory_;
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

}  // namespace

int main(int argc, char** argv) {
  example::Options options;
  if (!example::parse(argc, argv, options)) return 2;
  return example::run_two_batches(options, [&](int) { return std::make_unique<Host>(options.shape.hidden); });
}
