// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The words of include/ferry turned into the plainest loops.
#include "support/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/floats.h"
#include "support/logfmt.h"

namespace ferry::test {
namespace {

std::size_t u(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

std::int64_t up_to_multiple(std::int64_t value, std::int64_t of) {
  while (value % of != 0) ++value;
  return value;
}

/// The fp8 codec as the documents state it: a row of bf16 into data and scales, one after the other.
void encode_fp8(const std::byte* row, std::int64_t width, int block, bool power_of_two, std::vector<std::byte>& data,
                std::vector<std::byte>& scales) {
  for (std::int64_t begin = 0; begin < width; begin += block) {
    const std::int64_t end = std::min<std::int64_t>(width, begin + block);
    float amax = 1e-4f;
    for (std::int64_t i = begin; i < end; ++i) amax = std::fmax(amax, std::fabs(load(DType::kBf16, row + 2 * i)));
    float scale = amax * (1.0f / 448.0f);
    int power = 0;
    if (power_of_two) {
      while (std::ldexp(448.0, power) < static_cast<double>(amax) && power < 128) ++power;
      while (std::ldexp(448.0, power - 1) >= static_cast<double>(amax)) --power;
      scale = power == 128 ? HUGE_VALF : std::ldexp(1.0f, power);
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const float x = load(DType::kBf16, row + 2 * i);
      std::byte code;
      store(DType::kFp8E4m3, power_of_two ? x / scale : x * (448.0f / amax), &code);
      data.push_back(code);
    }
    if (power_of_two) {
      scales.push_back(static_cast<std::byte>(power + 127));
    } else {
      const auto at = scales.size();
      scales.resize(at + 4);
      store(DType::kFp32, scale, &scales[at]);
    }
  }
}

/// What a row of floats that are bf16 is after it was returned through a codec.
std::vector<float> through_codec(Codec codec, std::vector<float> row) {
  if (codec == Codec::kNone) return row;
  if (codec == Codec::kLogfmt10) return through_logfmt(std::move(row));
  std::vector<std::byte> bytes(row.size() * 2), data, scales;
  for (std::size_t i = 0; i < row.size(); ++i) store(DType::kBf16, row[i], &bytes[2 * i]);
  encode_fp8(bytes.data(), static_cast<std::int64_t>(row.size()), 128, false, data, scales);
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = load(DType::kFp8E4m3, &data[i]) * load(DType::kFp32, &scales[i / 128 * 4]);
  return row;
}

}  // namespace

Reference::Reference(const Case& c, int round)
    : case_(c), round_(round), places_(c.all_places()), inputs_(make_inputs(c, round)) {
  num_local_.assign(u(c.num_ranks()), 0);
  for (const auto& copies : places_) {
    for (const Place& place : copies) ++num_local_[u(place.rank)];
  }
  choices_.resize(u(c.num_ranks()));
  for (int rank = 0; rank < c.num_ranks(); ++rank) {
    route(rank);
    weigh(rank);
  }
}

void Reference::route(int rank) {
  const RankInputs& in = inputs(rank);
  auto& choices = choices_[u(rank)];
  choices.assign(in.ids.size(), {});
  if (case_.is_masked(rank)) return;
  for (std::size_t i = 0; i < in.ids.size(); ++i) {
    if (in.ids[i] < 0) continue;
    std::vector<Place> live;
    for (const Place& place : places_[u(in.ids[i])]) {
      if (!case_.is_masked(place.rank)) live.push_back(place);
    }
    if (live.empty()) continue;
    const auto token = static_cast<std::int64_t>(i) / case_.top_k;
    choices[i].live = true;
    choices[i].place = live[u((rank + token) % static_cast<std::int64_t>(live.size()))];
  }
}

void Reference::weigh(int rank) {
  const RankInputs& in = inputs(rank);
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    // Renormalised: times (sum over all choices) / (sum over live ones), both in float32, ascending.
    float all = 0, live = 0;
    for (int k = 0; k < case_.top_k; ++k) {
      const std::size_t i = u(t * case_.top_k + k);
      if (in.ids[i] >= 0) all += in.weights[i];
      if (choices_[u(rank)][i].live) live += in.weights[i];
    }
    const bool scale = case_.renormalise && all != live && live != 0;
    for (int k = 0; k < case_.top_k; ++k) {
      const std::size_t i = u(t * case_.top_k + k);
      choices_[u(rank)][i].weight = scale ? in.weights[i] * (all / live) : in.weights[i];
    }
  }
}

void Reference::set_weights(int rank, std::vector<float> weights) {
  inputs_[u(rank)].weights = std::move(weights);
  weigh(rank);
}

const Reference::Choice& Reference::choice(int rank, std::int64_t token, int k) const {
  return choices_[u(rank)][u(token * case_.top_k + k)];
}

bool Reference::visits(int source, std::int64_t token, int rank) const {
  for (int k = 0; k < case_.top_k; ++k) {
    if (choice(source, token, k).live && choice(source, token, k).place.rank == rank) return true;
  }
  return false;
}

std::vector<Origin> Reference::expert_rows(int rank, int local) const {
  std::vector<Origin> rows;
  for (int source = 0; source < case_.num_ranks(); ++source) {
    for (std::int64_t t = 0; t < inputs(source).tokens; ++t) {
      for (int k = 0; k < case_.top_k; ++k) {
        const Choice& c = choice(source, t, k);
        if (c.live && c.place == Place{rank, local}) rows.push_back({source, t, k, local});
      }
    }
  }
  return rows;
}

std::int64_t Reference::fullest_expert() const {
  std::int64_t most = 0;
  for (int rank = 0; rank < case_.num_ranks(); ++rank) {
    for (int local = 0; local < num_local_[u(rank)]; ++local)
      most = std::max(most, static_cast<std::int64_t>(expert_rows(rank, local).size()));
  }
  return most;
}

std::int64_t Reference::needed_rows(int rank, std::int64_t capacity) const {
  const ExpectedDispatch expected = dispatch(rank, capacity);
  return std::max(expected.num_rows, static_cast<std::int64_t>(expected.rows.size()));
}

std::vector<std::byte> Reference::wire_row(int source, std::int64_t token) const {
  std::vector<std::byte> all;
  for (std::size_t b = 0; b < case_.blocks.size(); ++b) {
    const auto bytes = case_.blocks[b].row_bytes();
    const std::byte* row = inputs(source).payload[b].data() + token * bytes;
    if (b == 0 && case_.codec != Codec::kNone) {
      std::vector<std::byte> data, scales;
      encode_fp8(row, case_.blocks[0].width, case_.scale_block, case_.codec == Codec::kFp8Ue8m0, data, scales);
      all.insert(all.end(), data.begin(), data.end());
      all.insert(all.end(), scales.begin(), scales.end());
    } else {
      all.insert(all.end(), row, row + bytes);
    }
  }
  return all;
}

void Reference::fill_rows(ExpectedDispatch& expected, int rank) const {
  expected.blocks = case_.blocks_on_arrival();
  expected.payload.resize(expected.blocks.size());
  for (const Origin& origin : expected.rows) {
    const bool padding = origin.source < 0;
    const std::vector<std::byte> row = padding ? std::vector<std::byte>() : wire_row(origin.source, origin.token);
    std::size_t at = 0;
    for (std::size_t b = 0; b < expected.blocks.size(); ++b) {
      const auto bytes = u(expected.blocks[b].row_bytes());
      auto& out = expected.payload[b];
      if (padding) {
        out.resize(out.size() + bytes);
      } else {
        out.insert(out.end(), row.begin() + static_cast<std::ptrdiff_t>(at),
                   row.begin() + static_cast<std::ptrdiff_t>(at + bytes));
      }
      at += bytes;
    }
    if (case_.layout != Layout::kRankMajor) {
      expected.weights.push_back(padding ? 0 : choice(origin.source, origin.token, origin.choice).weight);
      continue;
    }
    for (int k = 0; k < case_.top_k; ++k) {
      const Choice& c = choice(origin.source, origin.token, k);
      const bool mine = c.live && c.place.rank == rank;
      expected.ids.push_back(mine ? c.place.local_expert : -1);
      expected.weights.push_back(mine ? c.weight : 0);
    }
  }
}

ExpectedDispatch Reference::dispatch(int rank, std::int64_t capacity) const {
  ExpectedDispatch expected;
  expected.source_offsets.push_back(0);
  for (int source = 0; source < case_.num_ranks(); ++source) {
    for (std::int64_t t = 0; t < inputs(source).tokens; ++t) {
      if (!visits(source, t, rank)) continue;
      ++expected.num_rows;
      expected.source_tokens.push_back(static_cast<std::int32_t>(t));
      if (case_.layout == Layout::kRankMajor) expected.rows.push_back({source, t});
    }
    expected.source_offsets.push_back(static_cast<std::int32_t>(expected.num_rows));
    for (int to = 0; to < case_.num_ranks(); ++to) {
      std::int32_t count = 0;
      for (std::int64_t t = 0; t < inputs(source).tokens; ++t) count += visits(source, t, to) ? 1 : 0;
      expected.rank_counts.push_back(count);
    }
  }
  expected.expert_offsets.push_back(0);
  for (int local = 0; local < num_local_[u(rank)]; ++local) {
    const std::vector<Origin> rows = expert_rows(rank, local);
    const auto count = static_cast<std::int64_t>(rows.size());
    expected.expert_counts.push_back(static_cast<std::int32_t>(count));
    expected.host_expert_counts.push_back(case_.layout == Layout::kExpertMajor ? up_to_multiple(count, case_.alignment)
                                                                               : count);
    if (case_.layout == Layout::kRankMajor) continue;
    const std::int64_t extent =
        case_.layout == Layout::kExpertPadded ? capacity : up_to_multiple(count, case_.alignment);
    expected.rows.insert(expected.rows.end(), rows.begin(), rows.end());
    for (std::int64_t i = count; i < extent; ++i) expected.rows.push_back({.local = local});
    expected.expert_offsets.push_back(static_cast<std::int32_t>(expected.rows.size()));
  }
  fill_rows(expected, rank);
  return expected;
}

std::vector<float> Reference::rounded(std::vector<float> sums) const {
  std::byte element[4];
  for (float& value : sums) {
    store(case_.combine_dtype, value, element);
    value = load(case_.combine_dtype, element);
  }
  return sums;
}

float Reference::weight_at_combine(int rank, std::int64_t token, int k) const {
  if (case_.weighting == CombineArgs::Weighting::kGiven) return inputs(rank).late_weights[u(token * case_.top_k + k)];
  return choice(rank, token, k).weight;
}

/// What one rank returns for a token: its own row, or the rounded sum over its experts, choices ascending.
std::vector<float> Reference::rank_sum(int source, std::int64_t token, int rank) const {
  std::vector<float> sum(u(case_.combine_width), 0.0f);
  const auto size = static_cast<std::int64_t>(dtype_bytes(case_.combine_dtype));
  if (case_.layout == Layout::kRankMajor) {
    const auto row = returned_row(case_, round_, rank, -1, source, token, -1);
    for (std::int64_t i = 0; i < case_.combine_width; ++i) sum[u(i)] = load(case_.combine_dtype, &row[u(i * size)]);
    return through_codec(case_.combine_codec, std::move(sum));
  }
  for (int k = 0; k < case_.top_k; ++k) {
    const Choice& c = choice(source, token, k);
    if (!c.live || c.place.rank != rank) continue;
    const auto row = returned_row(case_, round_, rank, c.place.local_expert, source, token, k);
    for (std::int64_t i = 0; i < case_.combine_width; ++i) {
      const float y = load(case_.combine_dtype, &row[u(i * size)]);
      float& acc = sum[u(i)];
      acc = case_.weighting == CombineArgs::Weighting::kNone ? acc + y
                                                             : std::fma(weight_at_combine(source, token, k), y, acc);
    }
  }
  return through_codec(case_.combine_codec, rounded(sum));
}

std::vector<float> Reference::bias(int rank, std::int64_t token) const {
  const RankInputs& in = inputs(rank);
  std::vector<float> values(u(case_.combine_width), 0.0f);
  const auto element = [&](const std::vector<std::byte>& from, DType dtype, std::int64_t i) {
    return load(dtype, &from[u(token * case_.combine_width + i) * dtype_bytes(dtype)]);
  };
  for (std::int64_t i = 0; i < case_.combine_width; ++i) {
    float& value = values[u(i)];
    if (!in.bias0.empty()) value = element(in.bias0, *case_.bias0, i);
    if (!in.bias1.empty()) {
      const float second = element(in.bias1, *case_.bias1, i);
      value = in.bias0.empty() ? second : value + second;
    }
  }
  return values;
}

std::vector<std::byte> Reference::combine(int rank) const {
  const auto size = dtype_bytes(case_.combine_dtype);
  const bool last_choice = case_.reduction.order == Reduction::Order::kLastChoice;
  std::vector<int> node_of;
  for (std::size_t node = 0; node < case_.nodes.size(); ++node)
    node_of.insert(node_of.end(), u(case_.nodes[node]), static_cast<int>(node));

  /// Groups of a token in order, for a function choice -> group: ascending, or by their last choice.
  const auto groups_of = [&](std::int64_t token, auto group_of) {
    std::vector<std::pair<int, int>> last;  // (sort key, group)
    for (int k = 0; k < case_.top_k; ++k) {
      if (!choice(rank, token, k).live) continue;
      const int group = group_of(choice(rank, token, k).place.rank);
      if (group < 0) continue;
      std::erase_if(last, [&](const auto& entry) { return entry.second == group; });
      last.emplace_back(last_choice ? k : group, group);
    }
    std::sort(last.begin(), last.end());
    return last;
  };
  const auto add = [](std::vector<float>& acc, const std::vector<float>& terms) {
    for (std::size_t i = 0; i < acc.size(); ++i) acc[i] += terms[i];
  };

  std::vector<std::byte> out(u(inputs(rank).tokens * case_.combine_width) * size);
  for (std::int64_t t = 0; t < inputs(rank).tokens; ++t) {
    std::vector<float> acc = bias(rank, t);
    switch (case_.reduction.group) {
      case Reduction::Group::kChoice:
        for (int k = 0; k < case_.top_k; ++k) {
          const Choice& c = choice(rank, t, k);
          if (!c.live) continue;
          const auto row = returned_row(case_, round_, c.place.rank, c.place.local_expert, rank, t, k);
          std::vector<float> y(acc.size());
          for (std::size_t i = 0; i < acc.size(); ++i) y[i] = load(case_.combine_dtype, &row[i * size]);
          y = through_codec(case_.combine_codec, std::move(y));
          for (std::size_t i = 0; i < acc.size(); ++i) {
            acc[i] = case_.weighting == CombineArgs::Weighting::kNone
                         ? acc[i] + y[i]
                         : std::fma(weight_at_combine(rank, t, k), y[i], acc[i]);
          }
        }
        break;
      case Reduction::Group::kRank:
        for (const auto& [key, owner] : groups_of(t, [](int r) { return r; })) add(acc, rank_sum(rank, t, owner));
        break;
      case Reduction::Group::kNode:
        for (const auto& [key, node] : groups_of(t, [&](int r) { return node_of[u(r)]; })) {
          std::vector<float> node_sum(acc.size(), 0.0f);
          const int which = node;
          for (const auto& [rank_key, owner] : groups_of(t, [&](int r) { return node_of[u(r)] == which ? r : -1; }))
            add(node_sum, rank_sum(rank, t, owner));
          add(acc, rounded(node_sum));
        }
        break;
    }
    for (std::size_t i = 0; i < acc.size(); ++i)
      store(case_.combine_dtype, acc[i], &out[(u(t * case_.combine_width) + i) * size]);
  }
  return out;
}

std::vector<float> Reference::combined_weights(int rank) const {
  std::vector<float> values;
  for (std::int64_t t = 0; t < inputs(rank).tokens; ++t) {
    for (int k = 0; k < case_.top_k; ++k) {
      const Choice& c = choice(rank, t, k);
      values.push_back(c.live ? returned_weight(case_, round_, c.place.rank, rank, t, k) : 0.0f);
    }
  }
  return values;
}

}  // namespace ferry::test
