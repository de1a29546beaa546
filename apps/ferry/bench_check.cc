// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Plain loops that say whether a benchmark's result is right: see bench_check.h.
#include "bench_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include <fmt/format.h>

namespace ferry::bench {
namespace {

float bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t bf16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/// sign, exponent and fraction of a small float format with gradual underflow; specials do not occur in the input.
float small_value(unsigned bits, int exponent_bits, int fraction_bits, int bias) {
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = static_cast<int>(bits) & ((1 << fraction_bits) - 1);
  const float size =
      exponent == 0 ? std::ldexp(static_cast<float>(fraction), 1 - bias - fraction_bits)
                    : std::ldexp(static_cast<float>(fraction + (1 << fraction_bits)), exponent - bias - fraction_bits);
  return (bits >> (exponent_bits + fraction_bits)) != 0 ? -size : size;
}

/// Sums stay far below the largest fp16, so overflow needs no thought.
std::uint16_t fp16_bits(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  const int exponent = size == 0 ? -14 : std::max(std::ilogb(size), -14);
  const auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  // `steps` is 1024 .. 2048 for normal numbers; a carry into the exponent and subnormals come out right by addition.
  return static_cast<std::uint16_t>(sign | ((static_cast<unsigned>(exponent + 14) << 10) + steps));
}

/// Reads and rounds in the element type of combine.
class Element {
 public:
  explicit Element(const std::string& dtype)
      : type_(dtype == "fp32"   ? Type::kFp32
              : dtype == "fp16" ? Type::kFp16
                                : Type::kBf16) {}

  float load(const std::byte* row, std::size_t index) const {
    if (type_ == Type::kFp32) {
      float value;
      std::memcpy(&value, row + 4 * index, 4);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, row + 2 * index, 2);
    return type_ == Type::kFp16 ? small_value(bits, 5, 10, 15) : bf16_value(bits);
  }

  float round(float value) const {
    if (type_ == Type::kFp32) return value;
    return type_ == Type::kFp16 ? small_value(fp16_bits(value), 5, 10, 15) : bf16_value(bf16_bits(value));
  }

 private:
  enum class Type { kBf16, kFp16, kFp32 };  // not the word: it would be compared for every element
  Type type_;
};

/// One term of a token's sum, in the order of its stage.
struct Term {
  const std::byte* row;
  float weight;
  int rank;
  int node;
};

std::vector<Term> terms_of(const BenchCase& c, const RowPools& pools, const Routing& routing, int set, int rank,
                           std::int64_t token) {
  std::vector<Term> terms;
  const auto at = static_cast<std::size_t>(token * c.top_k);
  const std::vector<std::int32_t>& ids = routing.ids[static_cast<std::size_t>(rank)];
  for (int owner = 0; owner < c.ranks; ++owner) {
    for (int choice = 0; choice < c.top_k; ++choice) {
      const std::size_t i = at + static_cast<std::size_t>(choice);
      if (owner_of(c, ids[i]) != owner) continue;
      const bool whole_rank = c.layout == "rank_major";
      terms.push_back({.row = pools.results.row(result_key(set, rank, token, whole_rank ? owner : choice)),
                       .weight = combine_is_weighted(c) ? routing.weights[static_cast<std::size_t>(rank)][i] : 1.0F,
                       .rank = owner,
                       .node = node_of(c, owner)});
      if (whole_rank) break;
    }
  }
  return terms;
}

/// Choices in ascending order, whatever their rank: the order of `flat`.
std::vector<Term> flat_terms(const BenchCase& c, const RowPools& pools, const Routing& routing, int set, int rank,
                             std::int64_t token) {
  std::vector<Term> terms;
  for (int choice = 0; choice < c.top_k; ++choice) {
    const auto i = static_cast<std::size_t>(token * c.top_k + choice);
    terms.push_back({.row = pools.results.row(result_key(set, rank, token, choice)),
                     .weight = combine_is_weighted(c) ? routing.weights[static_cast<std::size_t>(rank)][i] : 1.0F,
                     .rank = 0,
                     .node = 0});
  }
  return terms;
}

using Sums = std::vector<float>;

void add_weighted(const Element& element, const Term& term, Sums& sums) {
  for (std::size_t h = 0; h < sums.size(); ++h) sums[h] = std::fma(term.weight, element.load(term.row, h), sums[h]);
}

void add_rounded(const Element& element, const Sums& part, Sums& sums) {
  for (std::size_t h = 0; h < sums.size(); ++h) sums[h] += element.round(part[h]);
}

/// Sums of one rank's rows. A row of rank_major is such a sum already.
Sums rank_sum(const Element& element, std::span<const Term> terms, std::size_t hidden) {
  Sums sums(hidden, 0.0F);
  for (const Term& term : terms) add_weighted(element, term, sums);
  return sums;
}

/// All terms with the same key form one group; groups are neighbours because terms are sorted by rank.
template <typename Key, typename Sum>
Sums sum_groups(const Element& element, std::span<const Term> terms, std::size_t hidden, Key key, Sum sum) {
  Sums total(hidden, 0.0F);
  for (std::size_t first = 0; first < terms.size();) {
    std::size_t last = first;
    while (last < terms.size() && key(terms[last]) == key(terms[first])) ++last;
    add_rounded(element, sum(terms.subspan(first, last - first)), total);
    first = last;
  }
  return total;
}

Sums expected_sum(const BenchCase& c, const Element& element, std::span<const Term> terms) {
  const auto hidden = static_cast<std::size_t>(c.hidden);
  const auto by_rank = [&](std::span<const Term> part) { return rank_sum(element, part, hidden); };
  const auto ranks_summed = [&](std::span<const Term> part) {
    return sum_groups(
        element, part, hidden, [](const Term& term) { return term.rank; }, by_rank);
  };
  if (c.reduction == "flat") return by_rank(terms);
  if (c.reduction == "per_rank") return ranks_summed(terms);
  return sum_groups(
      element, terms, hidden, [](const Term& term) { return term.node; }, ranks_summed);
}

/// Data and scales of a coded row must lie within half a step of e4m3 around the original.
std::string check_coded_row(const BenchCase& c, const std::byte* original, const Received& received, std::int64_t row) {
  const std::byte* const data =
      received.blocks[0].data + static_cast<std::size_t>(row) * received.blocks[0].stride_bytes;
  const std::byte* const scales =
      received.blocks[1].data + static_cast<std::size_t>(row) * received.blocks[1].stride_bytes;
  const Element element("bf16");
  for (std::size_t h = 0; h < static_cast<std::size_t>(c.hidden); ++h) {
    float scale = 0;
    if (c.codec == "fp8_f32") std::memcpy(&scale, scales + h / 128 * 4, 4);
    if (c.codec == "fp8_ue8m0") scale = std::ldexp(1.0F, std::to_integer<int>(scales[h / 128]) - 127);
    const float coded = small_value(std::to_integer<unsigned>(data[h]), 4, 3, 7);
    const float allowed = scale * std::max(0x1.0p-10F, std::fabs(coded) * 0x1.0p-4F) * 1.001F;
    const float wanted = element.load(original, h);
    if (!(std::fabs(coded * scale - wanted) <= allowed)) {
      return fmt::format("row {} element {}: {} x {} is not {}", row, h, coded, scale, wanted);
    }
  }
  return {};
}

std::string check_meta(const BenchCase& c, const Routing& routing, int rank, const RowSource& source,
                       const Received& received) {
  const auto at = static_cast<std::size_t>(source.token * c.top_k);
  const std::int32_t* const ids = routing.ids[static_cast<std::size_t>(source.rank)].data() + at;
  const float* const weights = routing.weights[static_cast<std::size_t>(source.rank)].data() + at;
  if (source.choice >= 0) {
    return received.weights[source.row] == weights[source.choice] ? ""
                                                                  : fmt::format("row {}: wrong weight", source.row);
  }
  for (int k = 0; k < c.top_k; ++k) {
    const bool here = owner_of(c, ids[k]) == rank;
    const auto i = static_cast<std::size_t>(source.row * c.top_k + k);
    const std::int32_t id = here ? ids[k] - first_expert(c, rank) : -1;
    if (received.ids[i] != id)
      return fmt::format("row {} choice {}: id {}, expected {}", source.row, k, received.ids[i], id);
    if (received.weights[i] != (here ? weights[k] : 0.0F))
      return fmt::format("row {} choice {}: wrong weight", source.row, k);
  }
  return {};
}

}  // namespace

bool combine_is_weighted(const BenchCase& bench_case) {
  return bench_case.layout != "rank_major";
}

std::string check_dispatch(const BenchCase& c, const RowPools& pools, const Routing& routing, int set, int rank,
                           const Received& received) {
  const std::vector<RowSource> rows = expected_rows(c, routing, rank);
  if (received.rows != static_cast<std::int64_t>(rows.size())) {
    return fmt::format("dispatch: {} rows arrived, expected {}", received.rows, rows.size());
  }
  const std::size_t num_blocks = c.codec == "none" ? pools.blocks.size() : 2;
  if (received.blocks.size() != num_blocks) {
    return fmt::format("dispatch: {} blocks arrived, expected {}", received.blocks.size(), num_blocks);
  }
  for (const RowSource& source : rows) {
    std::string difference = check_meta(c, routing, rank, source, received);
    for (std::size_t b = 0; b < pools.blocks.size() && difference.empty(); ++b) {
      const std::byte* const wanted =
          pools.blocks[b].row(input_key(set, source.rank, source.token, static_cast<int>(b)));
      const std::byte* const seen =
          received.blocks[b].data + static_cast<std::size_t>(source.row) * received.blocks[b].stride_bytes;
      if (c.codec != "none") {
        difference = check_coded_row(c, wanted, received, source.row);
      } else if (std::memcmp(wanted, seen, pools.blocks[b].row_bytes()) != 0) {
        difference = fmt::format("row {} block {}: bytes differ", source.row, b);
      }
    }
    if (!difference.empty()) {
      return fmt::format("dispatch: {} (from rank {} token {})", difference, source.rank, source.token);
    }
  }
  return {};
}

std::string check_combine(const BenchCase& c, const RowPools& pools, const Routing& routing, int set, int rank,
                          const std::byte* out) {
  const Element element(combine_dtype(c));
  for (std::int64_t token = 0; token < c.tokens; ++token) {
    const std::vector<Term> terms = c.reduction == "flat" ? flat_terms(c, pools, routing, set, rank, token)
                                                          : terms_of(c, pools, routing, set, rank, token);
    const Sums sums = expected_sum(c, element, terms);
    const std::byte* const row = out + static_cast<std::size_t>(token) * combine_row_bytes(c);
    for (std::size_t h = 0; h < sums.size(); ++h) {
      const float seen = element.load(row, h);
      const float wanted = element.round(sums[h]);
      if (std::bit_cast<std::uint32_t>(seen) != std::bit_cast<std::uint32_t>(wanted)) {
        return fmt::format("combine: token {} element {}: {}, expected {}", token, h, seen, wanted);
      }
    }
  }
  return {};
}

}  // namespace ferry::bench
