// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One process, plain loops: a list of (token, choice) per expert, the experts, and sums in the documented order.
#include "reference.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>

#include "experts.h"
#include "gate.h"
#include "multiply.h"
#include "numbers.h"

namespace ferry::app {
namespace {

constexpr int kScaleBlock = 128;

/// Calls `work(i)` for all i on the machine's cores; `on_progress` only from the calling thread.
void for_each_in_parallel(int count, const std::function<void(int)>& work,
                          const std::function<void(double)>& on_progress) {
  std::atomic<int> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto loop = [&](bool reports) {
    try {
      for (int i = next++; i < count; i = next++) {
        work(i);
        if (reports) on_progress(static_cast<double>(std::min(next.load(), count)) / count);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  const unsigned num_cores = std::clamp(std::thread::hardware_concurrency(), 1u, 64u);
  for (unsigned i = 1; i < num_cores; ++i) helpers.emplace_back(loop, false);
  loop(true);
  for (auto& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

/// The part of `count` things that `owners` owners in a row hold: the first ones take one more if there is a rest.
std::vector<int> owners_in_order(int count, int owners) {
  std::vector<int> owner_of;
  for (int owner = 0; owner < owners; ++owner) {
    const int share = count / owners + (owner < count % owners ? 1 : 0);
    owner_of.insert(owner_of.end(), static_cast<std::size_t>(share), owner);
  }
  return owner_of;
}

/// The layer for all tokens. `Real` = float follows codec, order and roundings; double knows none of them.
template <class Real>
class OneProcess {
  static constexpr bool kFollows = std::is_same_v<Real, float>;

 public:
  OneProcess(const DemoOptions& options, const std::vector<LayerInput>& inputs,
             const std::function<void(double)>& on_progress)
      : options_(options), on_progress_(on_progress), top_k_(options.top_k), hidden_(options.hidden) {
    const std::vector<float> gate = make_gate(options.gate_shape(), options.seed);
    gate_.assign(gate.begin(), gate.end());
    for (const LayerInput& input : inputs) {
      x_.insert(x_.end(), input.x.begin(), input.x.end());
      target_.insert(target_.end(), input.target.begin(), input.target.end());
    }
    num_tokens_ = static_cast<std::int64_t>(x_.size()) / hidden_;
    rank_of_expert_ = owners_in_order(options.experts, options.ranks);
    node_of_rank_ = owners_in_order(options.ranks, options.nodes);
  }

  /// `ids` empty: choose.
  void run(const std::vector<std::int32_t>& ids) {
    route(ids);
    experts_forward();
    combine_all(y_, true, out_);
    gradients_.resize(out_.size());
    for (std::size_t i = 0; i < out_.size(); ++i) gradients_[i] = settle(out_[i] - target_[i]);
    experts_backward();
    combine_all(dx_, false, x_gradients_);
    gate_backward_all();
  }

  std::vector<Real> out_, x_gradients_, weight_gradients_;
  std::vector<std::uint64_t> expert_digests_, gate_digests_;
  std::vector<std::vector<std::int64_t>> choices_;  // of each expert: token * K + choice, ascending
  Routing<Real> routing_;

 private:
  Real settle(Real value) const {
    if constexpr (kFollows) return round_to(options_.wire.dtype, value);
    return value;
  }

  /// Each rank routes its own tokens; done at once, since a token's row decides alone.
  void route(const std::vector<std::int32_t>& ids) {
    if constexpr (kFollows) {
      routing_ = route_tokens(options_.gate_shape(), gate_, x_);
    } else {
      routing_ = route_exactly(options_.gate_shape(), gate_, x_, ids);
    }
    choices_.resize(static_cast<std::size_t>(options_.experts));
    for (std::size_t i = 0; i < routing_.ids.size(); ++i) {
      choices_[static_cast<std::size_t>(routing_.ids[i])].push_back(static_cast<std::int64_t>(i));
    }
  }

  void experts_forward() {
    y_.resize(routing_.ids.size() * static_cast<std::size_t>(hidden_));
    runs_.resize(choices_.size());
    for_each_in_parallel(
        options_.experts,
        [this](int e) {
          const auto& choices = choices_[static_cast<std::size_t>(e)];
          std::vector<Real> x(choices.size() * static_cast<std::size_t>(hidden_));
          for (std::size_t i = 0; i < choices.size(); ++i)
            travel(choices[i] / top_k_, x.data() + static_cast<std::int64_t>(i) * hidden_);
          auto& run = runs_[static_cast<std::size_t>(e)];
          run = expert_forward(make_expert<Real>(hidden_, options_.inner(), options_.seed, e), std::move(x));
          for (Real& value : run.y) value = settle(value);
          for (std::size_t i = 0; i < choices.size(); ++i) {
            std::copy_n(run.y.data() + static_cast<std::int64_t>(i) * hidden_, hidden_,
                        y_.data() + choices[i] * hidden_);
          }
        },
        [this](double fraction) { on_progress_(fraction * 0.3); });
  }

  /// A token's row as its experts see it.
  void travel(std::int64_t token, Real* to) const {
    if constexpr (kFollows) {
      through_codec(options_.wire.codec, kScaleBlock, x_.data() + token * hidden_, hidden_, to);
    } else {
      std::copy_n(x_.data() + token * hidden_, hidden_, to);
    }
  }

  void experts_backward() {
    dx_.resize(y_.size());
    weight_gradients_.resize(routing_.ids.size());
    expert_digests_.resize(choices_.size());
    for_each_in_parallel(
        options_.experts,
        [this](int e) {
          const auto& choices = choices_[static_cast<std::size_t>(e)];
          std::vector<Real> dy(choices.size() * static_cast<std::size_t>(hidden_));
          for (std::size_t i = 0; i < choices.size(); ++i) {
            const auto choice = static_cast<std::size_t>(choices[i]);
            const Real* gradient = gradients_.data() + choices[i] / top_k_ * hidden_;
            // A sum over ranks of which only the owner has a term; it starts at +0.
            weight_gradients_[choice] = Real(0) + ordered_dot(gradient, y_.data() + choices[i] * hidden_, hidden_);
            Real* row = dy.data() + static_cast<std::int64_t>(i) * hidden_;
            for (std::int64_t h = 0; h < hidden_; ++h) row[h] = gradient[h] * routing_.weights[choice];
          }
          const auto weights = make_expert<Real>(hidden_, options_.inner(), options_.seed, e);
          auto& run = runs_[static_cast<std::size_t>(e)];
          const ExpertGradients<Real> gradients = expert_backward(weights, run, dy);
          run = {};
          for (std::size_t i = 0; i < choices.size(); ++i) {
            for (std::int64_t h = 0; h < hidden_; ++h) {
              dx_[static_cast<std::size_t>(choices[i] * hidden_ + h)] =
                  settle(gradients.x[static_cast<std::size_t>(static_cast<std::int64_t>(i) * hidden_ + h)]);
            }
          }
          if constexpr (kFollows) {
            expert_digests_[static_cast<std::size_t>(e)] =
                digest(gradients.down, digest(gradients.up, digest(gradients.gate)));
          }
        },
        [this](double fraction) { on_progress_(0.3 + fraction * 0.7); });
  }

  void combine_all(const std::vector<Real>& rows, bool weighted, std::vector<Real>& sums) const {
    sums.resize(static_cast<std::size_t>(num_tokens_ * hidden_));
    for (std::int64_t t = 0; t < num_tokens_; ++t) {
      for (std::int64_t h = 0; h < hidden_; ++h)
        sums[static_cast<std::size_t>(t * hidden_ + h)] = combine_element(rows, weighted, t, h);
    }
  }

  Real add_choice(Real sum, const std::vector<Real>& rows, bool weighted, std::int64_t choice, std::int64_t h) const {
    const Real row = rows[static_cast<std::size_t>(choice * hidden_ + h)];
    return weighted ? std::fma(routing_.weights[static_cast<std::size_t>(choice)], row, sum) : sum + row;
  }

  /// One element of one token's sum.
  Real combine_element(const std::vector<Real>& rows, bool weighted, std::int64_t token, std::int64_t h) const {
    const std::int64_t first = token * top_k_;
    if (!kFollows || options_.reduction.group == Reduction::Group::kChoice) {
      Real sum = 0;
      for (int k = 0; k < top_k_; ++k) sum = add_choice(sum, rows, weighted, first + k, h);
      return settle(sum);
    }
    Real total = 0;
    Real node_sum = 0;
    bool node_has_rows = false;
    for (int rank = 0; rank < options_.ranks; ++rank) {
      Real rank_sum = 0;
      bool rank_has_rows = false;
      for (int k = 0; k < top_k_; ++k) {
        const std::int32_t expert = routing_.ids[static_cast<std::size_t>(first + k)];
        if (rank_of_expert_[static_cast<std::size_t>(expert)] != rank) continue;
        rank_sum = add_choice(rank_sum, rows, weighted, first + k, h);
        rank_has_rows = true;
      }
      if (options_.reduction.group == Reduction::Group::kRank) {
        if (rank_has_rows) total += settle(rank_sum);
        continue;
      }
      if (rank_has_rows) node_sum += settle(rank_sum);
      node_has_rows = node_has_rows || rank_has_rows;
      const bool last_of_node = rank + 1 == options_.ranks || node_of_rank_[static_cast<std::size_t>(rank + 1)] !=
                                                                  node_of_rank_[static_cast<std::size_t>(rank)];
      if (!last_of_node) continue;
      if (node_has_rows) total += settle(node_sum);
      node_sum = 0;
      node_has_rows = false;
    }
    return settle(total);
  }

  /// Every rank for its own tokens: the gate's gradients are sums over them.
  void gate_backward_all() {
    const auto slice = [](const std::vector<Real>& values, std::int64_t index, std::int64_t count) {
      return std::vector<Real>(values.begin() + index * count, values.begin() + (index + 1) * count);
    };
    for (int rank = 0; rank < options_.ranks; ++rank) {
      Routing<Real> routing;
      routing.ids.assign(routing_.ids.begin() + rank * options_.tokens * top_k_,
                         routing_.ids.begin() + (rank + 1) * options_.tokens * top_k_);
      routing.scores = slice(routing_.scores, rank, options_.tokens * options_.experts);
      const auto gradients = gate_backward(options_.gate_shape(), gate_, slice(x_, rank, options_.tokens * hidden_),
                                           routing, slice(weight_gradients_, rank, options_.tokens * top_k_));
      Real* x_gradients = x_gradients_.data() + rank * options_.tokens * hidden_;
      for (std::size_t i = 0; i < gradients.x.size(); ++i) x_gradients[i] += gradients.x[i];
      if constexpr (kFollows) gate_digests_.push_back(digest(gradients.gate));
    }
  }

  const DemoOptions& options_;
  const std::function<void(double)>& on_progress_;
  std::int64_t top_k_;
  std::int64_t hidden_;
  std::int64_t num_tokens_ = 0;
  std::vector<int> rank_of_expert_, node_of_rank_;
  std::vector<Real> gate_, x_, target_;
  std::vector<Real> y_, dx_;  // [tokens, K, hidden]
  std::vector<Real> gradients_;
  std::vector<ExpertRun<Real>> runs_;
};

}  // namespace

ReferenceResult compute_reference(const DemoOptions& options, const std::vector<LayerInput>& inputs,
                                  const std::function<void(double)>& on_progress) {
  OneProcess<float> process(options, inputs, on_progress);
  process.run({});
  ReferenceResult result;
  result.out = std::move(process.out_);
  result.x_gradients = std::move(process.x_gradients_);
  result.weight_gradients = std::move(process.weight_gradients_);
  result.expert_digests = std::move(process.expert_digests_);
  result.gate_digests = std::move(process.gate_digests_);
  for (const auto& choices : process.choices_) result.expert_rows.push_back(static_cast<std::int64_t>(choices.size()));
  result.ids = std::move(process.routing_.ids);
  return result;
}

ExactResult compute_exactly(const DemoOptions& options, const std::vector<LayerInput>& inputs,
                            const std::vector<std::int32_t>& ids, const std::function<void(double)>& on_progress) {
  OneProcess<double> process(options, inputs, on_progress);
  process.run(ids);
  return {.out = std::move(process.out_),
          .x_gradients = std::move(process.x_gradients_),
          .weight_gradients = std::move(process.weight_gradients_)};
}

}  // namespace ferry::app
