// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Legality, description and inputs of cases.
#include "support/cases.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "support/floats.h"

namespace ferry::test {
namespace {

/// A small stream of numbers from the hash.
class Stream {
 public:
  Stream(std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint64_t c = 0) : state_(hash(seed, a, b, c)) {}
  std::uint64_t next() { return hash(state_, ++count_); }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n)); }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
  std::uint64_t count_ = 0;
};

enum Purpose : std::uint64_t {
  kIds = 1,
  kWeights,
  kLateWeights,
  kPayload,
  kBias0,
  kBias1,
  kReturned,
  kReturnedWeight,
  kTokens
};

/// Values of mixed size, so that the order of a sum shows in its bits.
float value_from(std::uint64_t bits, bool special_values) {
  if (special_values && bits % 61 == 0) {
    constexpr float kSpecial[] = {HUGE_VALF, -HUGE_VALF, 0.0f, -0.0f, 0x1p-130f, -0x1p-24f, 3.0e38f, 0x1p-149f};
    const auto which = bits / 61 % 9;
    return which == 8 ? std::nanf("") : kSpecial[which];
  }
  const auto mantissa = static_cast<double>(bits >> 40) * 0x1p-24;
  const double sign = bits & 1 ? -1.0 : 1.0;
  return static_cast<float>(sign * std::ldexp(1 + mantissa, static_cast<int>(bits >> 8 & 7) - 4));
}

void fill_elements(DType dtype, std::uint64_t key, std::int64_t n, bool special_values, std::byte* at) {
  const auto size = static_cast<std::int64_t>(dtype_bytes(dtype));
  const bool is_number = dtype == DType::kBf16 || dtype == DType::kFp16 || dtype == DType::kFp32;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t bits = hash(key, static_cast<std::uint64_t>(i));
    if (is_number) {
      store(dtype, value_from(bits, special_values), at + i * size);
    } else {
      for (std::int64_t k = 0; k < size; ++k) at[i * size + k] = static_cast<std::byte>(bits >> (8 * k));
    }
  }
}

/// Rows whose groups of channels try a codec of combine: sizes apart by a few octaves or by many, zeros, nothing but zeros or one
/// size; in every third chunk also groups that logfmt10 cannot hold.
void fill_for_codec(std::uint64_t key, std::int64_t n, bool special_values, std::byte* at) {
  enum : std::uint64_t { kNear, kNearToo, kFar, kHoles, kZeros, kOneSize, kLarge, kNumKinds };
  for (std::int64_t i = 0; i < n; ++i) {
    const auto u = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
    const bool all_fit = hash(key, 1, u(i / 768)) % 3 != 0;
    const std::uint64_t kind = hash(key, 2, u(i / 128)) % (all_fit ? kOneSize : kNumKinds);
    const std::uint64_t bits = hash(key, 3, u(i)), more = hash(key, 4, u(i));
    float value = value_from(bits, special_values && kind == kLarge);
    if (kind != kLarge) value *= 0x1p-4f;
    if (kind == kFar) value = std::ldexp(value, -static_cast<int>(more % 80));
    if (kind == kZeros || (kind == kHoles && more % 2 == 0)) value = std::copysign(0.0f, value);
    if (kind == kOneSize) value = std::copysign(0.25f, value);
    store(DType::kBf16, value, at + 2 * i);
  }
}

std::int64_t zipf(Stream& stream, int n) {
  // By inversion of the continuous density 1/x on [1, n + 1).
  const double x = std::exp(stream.unit() * std::log(n + 1.0));
  return std::min<std::int64_t>(n - 1, static_cast<std::int64_t>(x) - 1);
}

/// Experts with a copy on the rank that owns expert 0.
std::vector<std::int64_t> experts_of_one_rank(const Case& c) {
  const auto places = c.all_places();
  std::vector<std::int64_t> experts;
  for (std::size_t e = 0; e < places.size(); ++e) {
    for (const Place& place : places[e]) {
      if (place.rank == places[0][0].rank) experts.push_back(static_cast<std::int64_t>(e));
    }
  }
  return experts;
}

void make_distinct(std::vector<std::int64_t>& row, int num_experts) {
  if (static_cast<int>(row.size()) > num_experts) return;
  for (std::size_t k = 0; k < row.size(); ++k) {
    while (std::find(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(k), row[k]) !=
           row.begin() + static_cast<std::ptrdiff_t>(k)) {
      row[k] = (row[k] + 1) % num_experts;
    }
  }
}

std::vector<std::int64_t> ids_of_token(const Case& c, Stream& stream, int rank, std::int64_t token,
                                       const std::vector<std::int64_t>& one_rank) {
  std::vector<std::int64_t> row(static_cast<std::size_t>(c.top_k));
  for (int k = 0; k < c.top_k; ++k) {
    std::int64_t& id = row[static_cast<std::size_t>(k)];
    switch (c.traffic) {
      case Traffic::kUniform:
      case Traffic::kRepeated:
        id = stream.below(c.num_experts);
        break;
      case Traffic::kBalanced:
        id = (rank + token * c.top_k + k) % c.num_experts;
        break;
      case Traffic::kZipf:
        id = zipf(stream, c.num_experts);
        break;
      case Traffic::kAllToOne:
        id = one_rank[static_cast<std::size_t>(stream.below(static_cast<std::int64_t>(one_rank.size())))];
        break;
      case Traffic::kOneExpert:
        id = c.num_experts - 1;
        break;
      case Traffic::kNowhere:
        id = -1;
        break;
    }
  }
  if (c.traffic == Traffic::kUniform || c.traffic == Traffic::kZipf) make_distinct(row, c.num_experts);
  for (auto& id : row) {
    if (c.dropped > 0 && stream.unit() < c.dropped) {
      constexpr std::int64_t kNegative[] = {-1, -1, -2, -100, INT32_MIN};
      id = kNegative[stream.below(5)];
    }
  }
  return row;
}

float weight_from(std::uint64_t bits) {
  return static_cast<float>(static_cast<double>((bits >> 20) + 1) * 0x1p-44);
}

/// Rows of combine in fewer bits, where that is legal.
void draw_combine_codec(Case& c, Stream& draw) {
  if (c.mode != Mode::kLatency || draw.unit() >= 0.5) return;
  constexpr std::int64_t kWidths[] = {8, 40, 136, 264, 520, 776, 1544};
  c.combine_dtype = DType::kBf16;
  if (c.bias0 == DType::kFp16) c.bias0 = DType::kBf16;
  if (c.bias1 == DType::kFp16) c.bias1 = DType::kBf16;
  c.combine_codec = draw.below(3) == 0 ? Codec::kFp8F32 : Codec::kLogfmt10;
  c.combine_width = kWidths[draw.below(std::ssize(kWidths))];
}

}  // namespace

std::uint64_t hash(std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t d) {
  std::uint64_t state = seed + 0x9e3779b97f4a7c15u;
  for (const std::uint64_t word : {a, b, c, d}) {
    state = (state ^ word) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 29)) * 0x94d049bb133111ebu;
    state ^= state >> 32;
  }
  return state;
}

int Case::num_ranks() const {
  return std::accumulate(nodes.begin(), nodes.end(), 0);
}

std::int64_t Case::tokens_of(int rank, int round) const {
  const auto r = static_cast<std::size_t>(rank);
  const std::int64_t most = r < tokens.size() ? tokens[r] : 5;
  // Later rounds bring fewer tokens to some ranks.
  return round == 0 || most == 0 ? most
                                 : static_cast<std::int64_t>(hash(seed, kTokens, r, static_cast<std::uint64_t>(round)) %
                                                             static_cast<std::uint64_t>(most + 1));
}

std::int64_t Case::max_tokens() const {
  std::int64_t most = 1;
  for (int rank = 0; rank < num_ranks(); ++rank) most = std::max(most, tokens_of(rank, 0));
  return most;
}

std::int64_t Case::max_latency_tokens() const {
  if (mode != Mode::kLatency) return 0;
  const bool distinct = (traffic == Traffic::kUniform || traffic == Traffic::kZipf || traffic == Traffic::kBalanced) &&
                        top_k <= num_experts;
  return distinct ? max_tokens() : max_tokens() * top_k;
}

bool Case::is_masked(int rank) const {
  return std::find(masked.begin(), masked.end(), rank) != masked.end();
}

std::vector<std::vector<Place>> Case::all_places() const {
  if (!places.empty()) return places;
  std::vector<std::vector<Place>> all;
  const int ranks = num_ranks();
  for (int rank = 0; rank < ranks; ++rank) {
    const int count = num_experts / ranks + (rank < num_experts % ranks ? 1 : 0);
    for (int local = 0; local < count; ++local) all.push_back({Place{rank, local}});
  }
  return all;
}

std::vector<Block> Case::blocks_on_arrival() const {
  std::vector<Block> list = blocks;
  if (codec == Codec::kNone) return list;
  list[0].dtype = DType::kFp8E4m3;
  const std::int64_t scales = (list[0].width + scale_block - 1) / scale_block;
  list.insert(list.begin() + 1, {codec == Codec::kFp8F32 ? DType::kFp32 : DType::kUe8m0, scales});
  return list;
}

std::string Case::why_not() const {
  if (mode == Mode::kLatency && layout == Layout::kExpertMajor) return "latency mode has no expert_major";
  if (codec != Codec::kNone && blocks[0].dtype != DType::kBf16) return "codecs take bf16";
  if (layout == Layout::kRankMajor && reduction.group == Reduction::Group::kChoice)
    return "rank_major rows cannot be summed flat";
  if (layout == Layout::kRankMajor && weighting != CombineArgs::Weighting::kNone)
    return "rank_major rows are sums already";
  if (weighting == CombineArgs::Weighting::kFromDispatch && !weights) return "no weights travelled";
  if (combine_codec != Codec::kNone && (mode != Mode::kLatency || combine_dtype != DType::kBf16))
    return "codecs of combine take bf16 in latency mode";
  return {};
}

Case adapted(Case c) {
  const char* backend = std::getenv("FERRY_TEST_BACKEND");
  if (backend == nullptr) return c;
  c.backend = backend;
  if (c.backend != "cuda") return c;
  if (c.nodes.size() > 1) {
    c.network = "auto";
    c.top_k = std::min(c.top_k, 32);
    if (c.mode == Mode::kLatency && c.reduction.group == Reduction::Group::kNode)
      c.reduction.group = Reduction::Group::kRank;
    const bool flat = c.reduction.group == Reduction::Group::kChoice;
    if (c.mode == Mode::kLatency && c.weighting == CombineArgs::Weighting::kGiven && !flat)
      c.weighting = CombineArgs::Weighting::kNone;
  }
  c.top_k = std::min(c.top_k, c.mode == Mode::kLatency ? 32 : 128);
  c.timeout = std::min(c.timeout, std::chrono::seconds(3));
  // A process that has used CUDA cannot fork children that use it: either all cases of a run are processes or none.
  c.ranks_as = std::getenv("FERRY_TEST_PROCESSES") != nullptr ? RanksAs::kProcesses : RanksAs::kThreads;
  if (c.ranks_as == RanksAs::kProcesses) c.timeout = std::chrono::seconds(30);  // processes take turns on a GPU
  return c;
}

std::string why_not_here(const Case& c) {
  const char* backend = std::getenv("FERRY_TEST_BACKEND");
  if (backend == nullptr || std::string(backend) != "cuda") return {};
  if (c.ranks_as != ways()[0]) return fmt::format("ranks are {} in this run", name(ways()[0]));
  return {};
}

std::string why_no_network(const std::string& network) {
  const std::string name = "network " + network.substr(network.find('+') + 1);
  for (const Capability& one : capabilities()) {
    if (one.name == name) return one.usable ? "" : one.detail;
  }
  return name + " is unknown";
}

std::vector<RanksAs> ways() {
  const char* backend = std::getenv("FERRY_TEST_BACKEND");
  if (backend == nullptr || std::string(backend) != "cuda") return {RanksAs::kThreads, RanksAs::kProcesses};
  return {std::getenv("FERRY_TEST_PROCESSES") != nullptr ? RanksAs::kProcesses : RanksAs::kThreads};
}

std::string describe(const Case& c) {
  static constexpr const char* kTraffic[] = {"uniform",  "balanced",   "zipf",   "all-to-one",
                                             "repeated", "one-expert", "nowhere"};
  std::string text = fmt::format(
      "seed {} backend {} ranks as {} nodes {} experts {}{} top-k {} tokens {} {} dropped {:.2f} ids {} {} {} codec "
      "{}/{}",
      c.seed, c.backend, name(c.ranks_as), fmt::join(c.nodes, "+"), c.num_experts, c.places.empty() ? "" : " placed",
      c.top_k, fmt::join(c.tokens, ","), kTraffic[static_cast<int>(c.traffic)], c.dropped, c.int64_ids ? 64 : 32,
      name(c.mode), name(c.layout), name(c.codec), c.scale_block);
  text += " blocks";
  for (const Block& block : c.blocks) text += fmt::format(" {}x{}", name(block.dtype), block.width);
  text += fmt::format(" alignment {} combine {}x{} {}", c.alignment, name(c.combine_dtype), c.combine_width,
                      name(c.reduction));
  text += fmt::format(" order {} weighting {}",
                      c.reduction.order == Reduction::Order::kAscending ? "ascending" : "last-choice",
                      static_cast<int>(c.weighting));
  if (c.combine_codec != Codec::kNone) text += fmt::format(" combine codec {}", name(c.combine_codec));
  if (c.network != "auto") text += " network " + c.network;
  if (!c.masked.empty()) text += fmt::format(" masked {}", fmt::join(c.masked, ","));
  const std::pair<bool, const char*> flags[] = {{c.strided, "strided"},
                                                {c.weights, "weights"},
                                                {c.special_values, "special-values"},
                                                {c.default_capacity, "default-capacity"},
                                                {c.zero_padding, "zero-padding"},
                                                {c.renormalise, "renormalise"},
                                                {!c.host_counts, "no-host-counts"},
                                                {c.output == Output::kOwned, "owned"},
                                                {c.bias0.has_value(), "bias0"},
                                                {c.bias1.has_value(), "bias1"},
                                                {c.combine_weights, "combine-weights"},
                                                {c.out_given, "out-given"}};
  for (const auto& [on, word] : flags) {
    if (on) text += fmt::format(" {}", word);
  }
  return text + fmt::format(" rounds {} flights {} delay {} ns", c.rounds, c.num_flights, c.max_signal_delay_ns);
}

GroupConfig group_config(const Case& c) {
  GroupConfig config;
  config.backend = c.backend;
  config.topology = Topology::nodes(c.nodes);
  if (!c.places.empty()) config.placement = Placement::explicit_map(c.places, c.num_ranks());
  config.network = c.network;
  config.timeout = c.timeout;
  config.test = {.seed = c.seed, .max_signal_delay_ns = c.max_signal_delay_ns};

  GroupLimits& limits = config.limits;
  limits.num_experts = c.num_experts;
  limits.max_tokens = c.max_tokens();
  limits.max_latency_tokens = c.max_latency_tokens();
  limits.max_top_k = c.top_k;
  limits.num_flights = c.num_flights;
  limits.recv_rows = c.recv_rows;
  std::int64_t extra = 0;
  for (std::size_t b = 1; b < c.blocks.size(); ++b) extra += (c.blocks[b].row_bytes() + 15) / 16 * 16;
  limits.extra_bytes = extra;
  const std::size_t widest = std::max({dtype_bytes(c.blocks[0].dtype), dtype_bytes(c.combine_dtype), std::size_t{2}});
  limits.dtype = widest == 2 ? DType::kBf16 : DType::kFp32;
  const auto element = static_cast<std::int64_t>(dtype_bytes(limits.dtype));
  limits.hidden = std::max({(c.blocks[0].row_bytes() + element - 1) / element, c.combine_width,
                            c.codec == Codec::kNone ? std::int64_t{1} : c.blocks[0].width});
  // Three results at a time: asking the driver for memory may wait for kernels of other ranks on the same GPU.
  if (c.mode == Mode::kLatency && c.output == Output::kOwned)
    limits.owned_rows =
        3 * c.num_ranks() * limits.max_latency_tokens * static_cast<std::int64_t>(c.all_places().size());
  return config;
}

std::vector<RankInputs> make_inputs(const Case& c, int round) {
  std::vector<RankInputs> all;
  const auto u = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  const auto one_rank = experts_of_one_rank(c);
  for (int rank = 0; rank < c.num_ranks(); ++rank) {
    RankInputs in;
    in.tokens = c.tokens_of(rank, round);
    const std::uint64_t key = hash(c.seed, u(round), u(rank));
    Stream ids(key, kIds, 0);
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      const auto row = ids_of_token(c, ids, rank, t, one_rank);
      in.ids.insert(in.ids.end(), row.begin(), row.end());
    }
    for (std::size_t i = 0; i < in.ids.size(); ++i) {
      in.weights.push_back(weight_from(hash(key, kWeights, i)));
      in.late_weights.push_back(weight_from(hash(key, kLateWeights, i)) - 0.4f);
    }
    for (std::size_t b = 0; b < c.blocks.size(); ++b) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(in.tokens * c.blocks[b].row_bytes()));
      fill_elements(c.blocks[b].dtype, hash(key, kPayload, b), in.tokens * c.blocks[b].width, c.special_values,
                    bytes.data());
      in.payload.push_back(std::move(bytes));
    }
    const auto make_bias = [&](std::optional<DType> dtype, Purpose purpose) {
      if (!dtype || (c.bias_on_even_ranks_only && rank % 2 != 0)) return std::vector<std::byte>();
      std::vector<std::byte> bytes(static_cast<std::size_t>(in.tokens * c.combine_width) * dtype_bytes(*dtype));
      fill_elements(*dtype, hash(key, purpose), in.tokens * c.combine_width, c.special_values, bytes.data());
      return bytes;
    };
    in.bias0 = make_bias(c.bias0, kBias0);
    in.bias1 = make_bias(c.bias1, kBias1);
    all.push_back(std::move(in));
  }
  return all;
}

std::vector<std::byte> returned_row(const Case& c, int round, int rank, int local, int source, std::int64_t token,
                                    int choice) {
  std::vector<std::byte> row(static_cast<std::size_t>(c.combine_width) * dtype_bytes(c.combine_dtype));
  const std::uint64_t who =
      hash(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(local + 1), static_cast<std::uint64_t>(source));
  const std::uint64_t key = hash(c.seed, kReturned, who, static_cast<std::uint64_t>(token),
                                 static_cast<std::uint64_t>(choice + 1 + 1000 * round));
  if (c.combine_codec != Codec::kNone) {
    fill_for_codec(key, c.combine_width, c.special_values, row.data());
  } else {
    fill_elements(c.combine_dtype, key, c.combine_width, c.special_values, row.data());
  }
  return row;
}

float returned_weight(const Case& c, int round, int rank, int source, std::int64_t token, int choice) {
  const std::uint64_t who =
      hash(static_cast<std::uint64_t>(rank), static_cast<std::uint64_t>(source), static_cast<std::uint64_t>(round));
  return weight_from(
      hash(c.seed, kReturnedWeight, who, static_cast<std::uint64_t>(token), static_cast<std::uint64_t>(choice)));
}

Case draw_case(std::uint64_t seed) {
  static const std::vector<int> kNodes[] = {{1},    {2},    {3},       {4},    {5},       {7},    {8},       {1, 1},
                                            {2, 1}, {2, 2}, {3, 2, 1}, {1, 3}, {1, 1, 1}, {4, 4}, {2, 2, 2}, {1, 2, 4}};
  Stream draw(seed, 77, 0);
  const auto pick = [&]<class T>(std::initializer_list<T> list) -> T {
    return *(list.begin() + draw.below(static_cast<std::int64_t>(list.size())));
  };
  const auto chance = [&](double p) { return draw.unit() < p; };
  Case c;
  c.seed = seed;
  c.ranks_as = chance(0.2) ? RanksAs::kProcesses : RanksAs::kThreads;
  c.nodes = kNodes[static_cast<std::size_t>(draw.below(static_cast<std::int64_t>(std::size(kNodes))))];
  const int ranks = c.num_ranks();
  c.num_experts = pick({1, 2, 3, 5, 8, 9, 16, 17, 32});
  c.top_k = pick({1, 2, 2, 3, 4, 6, 8, 8, 17, 32});
  for (int rank = 0; rank < ranks; ++rank)
    c.tokens.push_back(chance(0.2) ? 0 : (chance(0.3) ? 1 : 1 + draw.below(c.top_k > 8 ? 6 : 16)));
  c.traffic = pick({Traffic::kUniform, Traffic::kUniform, Traffic::kUniform, Traffic::kBalanced, Traffic::kZipf,
                    Traffic::kAllToOne, Traffic::kRepeated, Traffic::kOneExpert, Traffic::kNowhere});
  c.dropped = pick({0.0, 0.0, 0.1, 0.5, 0.9});
  if (chance(0.3)) {  // any map, with replicas, some ranks perhaps without experts
    std::vector<int> locals(static_cast<std::size_t>(ranks), 0);
    for (int e = 0; e < c.num_experts; ++e) {
      std::vector<Place> copies;
      for (std::int64_t n = 1 + (chance(0.3) ? draw.below(3) : 0); n > 0; --n) {
        const int rank = static_cast<int>(draw.below(ranks));
        copies.push_back({rank, locals[static_cast<std::size_t>(rank)]++});
      }
      c.places.push_back(copies);
    }
  }
  c.int64_ids = chance(0.5);
  c.strided = chance(0.3);
  c.weights = chance(0.7);
  c.special_values = chance(0.3);
  c.mode = chance(0.4) ? Mode::kLatency : Mode::kThroughput;
  c.layout = pick({Layout::kRankMajor, Layout::kExpertMajor, Layout::kExpertPadded});
  if (!c.why_not().empty()) c.layout = Layout::kExpertPadded;
  const std::int64_t width = pick({8, 16, 24, 40, 72, 136, 264, 520});
  c.blocks = {{pick({DType::kBf16, DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kUint8}), width}};
  if (dtype_bytes(c.blocks[0].dtype) == 1) c.blocks[0].width = (width + 15) / 16 * 16;
  if (c.blocks[0].dtype == DType::kBf16 && chance(0.5)) c.codec = pick({Codec::kFp8F32, Codec::kFp8Ue8m0});
  c.scale_block = pick({128, 32});
  for (std::int64_t n = chance(0.4) ? 1 + draw.below(2) : 0; n > 0; --n) {
    c.blocks.push_back({pick({DType::kFp32, DType::kUe8m0, DType::kUint8, DType::kInt32, DType::kInt64, DType::kBf16}),
                        1 + draw.below(40)});
  }
  c.alignment = c.layout == Layout::kExpertMajor ? pick({1, 1, 4, 16, 128}) : 1;
  c.zero_padding = chance(0.5);
  c.host_counts = chance(0.7);
  c.output = chance(0.5) ? Output::kWindow : Output::kOwned;
  c.combine_dtype = pick({DType::kBf16, DType::kBf16, DType::kFp16, DType::kFp32});
  c.combine_width = pick({8, 16, 24, 40, 136, 264});
  c.reduction = pick({Reduction::per_rank(), Reduction::per_node(), Reduction::flat()});
  if (chance(0.3)) c.reduction.order = Reduction::Order::kLastChoice;
  if (c.reduction.group == Reduction::Group::kChoice)
    c.reduction = c.layout == Layout::kRankMajor ? Reduction::per_rank() : Reduction::flat();
  using Weighting = CombineArgs::Weighting;
  c.weighting = pick({Weighting::kNone, Weighting::kFromDispatch, Weighting::kGiven});
  if (!c.why_not().empty()) c.weighting = Weighting::kNone;
  if (chance(0.4)) c.bias0 = chance(0.5) ? c.combine_dtype : DType::kFp32;
  if (chance(0.3)) c.bias1 = chance(0.5) ? c.combine_dtype : DType::kFp32;
  c.bias_on_even_ranks_only = chance(0.2);
  c.combine_weights = chance(0.3);
  c.out_given = chance(0.3);
  c.rounds = 1 + static_cast<int>(draw.below(3));
  c.num_flights = 1 + static_cast<int>(draw.below(3));
  c.max_signal_delay_ns = chance(0.3) ? 200'000 : 0;
  if (ranks > 1 && chance(0.15)) {
    c.masked.push_back(static_cast<int>(draw.below(ranks)));
    c.renormalise = c.weights && chance(0.5);
  }
  draw_combine_codec(c, draw);
  return c;
}

Case draw_network_case(std::uint64_t seed, const std::string& network) {
  Case c;
  // The first seeds of a draw that fit: more than one node, ranks that stay few on a small machine.
  for (std::uint64_t next = seed; c.nodes.size() < 2 || c.num_ranks() > 5; next += 7919) c = draw_case(next);
  c.ranks_as = RanksAs::kProcesses;
  c.network = network;
  return adapted(c);
}

}  // namespace ferry::test
