// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Cases, routing and input of the benchmarks: see bench_case.h.
#include "bench_case.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

namespace ferry::bench {
namespace {

std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(mix(seed)) {}
  std::uint64_t next() { return mix(state_++); }
  double unit() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1.0p-53; }
  int below(int limit) { return static_cast<int>((next() >> 33) % static_cast<std::uint64_t>(limit)); }

 private:
  std::uint64_t state_;
};

void require(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument("ferry bench: " + message);
}

bool is_one_of(const std::string& word, std::initializer_list<const char*> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::int64_t last_level_cache_bytes() {
  const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 32 << 20;
}

std::int64_t memory_bytes() {
  return static_cast<std::int64_t>(::sysconf(_SC_AVPHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
}

/// As many sets as exceed twice the last-level cache, within an eighth of the free memory.
int sets_beyond_cache(const BenchCase& bench_case) {
  std::size_t token_bytes = combine_row_bytes(bench_case) * 2;
  for (const std::size_t bytes : block_bytes(bench_case)) token_bytes += bytes;
  const std::int64_t set_bytes =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(token_bytes) * bench_case.tokens * bench_case.ranks);
  const std::int64_t wanted = 2 * last_level_cache_bytes() / set_bytes + 2;
  const std::int64_t affordable = memory_bytes() / 8 / set_bytes;
  return static_cast<int>(std::clamp<std::int64_t>(std::min(wanted, affordable), 2, 256));
}

void distinct_uniform(Random& random, int limit, std::span<std::int32_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    do {
      out[i] = random.below(limit);
    } while (std::find(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(i), out[i]) !=
             out.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

/// Experts in eight groups; half of the groups are chosen, then the choices among them.
void distinct_grouped(Random& random, const BenchCase& bench_case, std::span<std::int32_t> out) {
  constexpr int kGroups = 8;
  const int per_group = bench_case.experts / kGroups;
  std::int32_t groups[kGroups / 2];
  distinct_uniform(random, kGroups, groups);
  distinct_uniform(random, per_group * kGroups / 2, out);
  for (std::int32_t& id : out) id = groups[id / per_group] * per_group + id % per_group;
}

/// Probability proportional to 1 / (expert + 1), without repetition: draw again what is already there.
void distinct_zipf(Random& random, std::span<const double> cumulative, std::span<std::int32_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    do {
      const double at = random.unit() * cumulative.back();
      out[i] =
          static_cast<std::int32_t>(std::upper_bound(cumulative.begin(), cumulative.end(), at) - cumulative.begin());
    } while (std::find(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(i), out[i]) !=
             out.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

std::vector<double> zipf_cumulative(int experts) {
  std::vector<double> cumulative(static_cast<std::size_t>(experts));
  double sum = 0;
  for (int e = 0; e < experts; ++e) cumulative[static_cast<std::size_t>(e)] = sum += 1.0 / (e + 1);
  return cumulative;
}

std::size_t scale_count(const BenchCase& bench_case) {
  return static_cast<std::size_t>((bench_case.hidden + 127) / 128);
}

/// Elements of a pool: rows start at any of 2^17 places in it.
constexpr std::size_t kPoolPlaces = std::size_t{1} << 17;

std::size_t element_bytes(const std::string& dtype) {
  if (dtype == "fp32" || dtype == "scale_f32") return 4;
  return dtype == "bf16" || dtype == "fp16" ? 2 : 1;
}

/// A number of about unit size as bits of the type; never NaN, so that bits can be compared.
std::uint32_t random_bits(const std::string& dtype, Random& random) {
  const auto bits = static_cast<std::uint32_t>(random.next());
  const std::uint32_t sign = bits >> 31;
  const std::uint32_t exponent = (bits >> 28) & 3;  // 2^-2 .. 2^1
  if (dtype == "fp32") return sign << 31 | (125 + exponent) << 23 | (bits & 0x7fffff);
  if (dtype == "scale_f32") return (120 + exponent) << 23 | (bits & 0x7fffff);
  if (dtype == "bf16") return sign << 15 | (125 + exponent) << 7 | (bits & 0x7f);
  if (dtype == "fp16") return sign << 15 | (13 + exponent) << 10 | (bits & 0x3ff);
  if (dtype == "scale_ue8m0") return 120 + (bits & 15);
  if (dtype == "fp8") return (bits & 0x7f) == 0x7f ? 0x38 : bits & 0xff;
  return bits & 0xff;
}

/// Types of the payload's blocks, in the words of random_bits.
std::vector<std::string> block_dtypes(const BenchCase& bench_case) {
  if (bench_case.payload == "fp8_f32") return {"fp8", "scale_f32"};
  if (bench_case.payload == "fp8_ue8m0") return {"fp8", "scale_ue8m0"};
  return {bench_case.payload};
}

void check_sizes(const BenchCase& c) {
  require(c.tokens >= 0, fmt::format("--tokens {}: expected 0 or more", c.tokens));
  require(c.hidden > 0, fmt::format("--hidden {}: expected 1 or more", c.hidden));
  require(c.ranks >= 1 && c.ranks <= 256, fmt::format("--ranks {}: expected 1 .. 256", c.ranks));
  require(c.nodes >= 1 && c.nodes <= c.ranks,
          fmt::format("--nodes {}: expected 1 .. {} (the ranks)", c.nodes, c.ranks));
  require(c.experts >= 1, fmt::format("--experts {}: expected 1 or more", c.experts));
  const int choosable = c.routing == "grouped" ? c.experts / 2 : c.experts;
  require(c.top_k >= 1 && c.top_k <= choosable,
          fmt::format("--top-k {}: expected 1 .. {} for {} experts and routing {}", c.top_k, choosable, c.experts,
                      c.routing));
  require(c.routing != "grouped" || c.experts % 8 == 0,
          fmt::format("--experts {}: routing grouped makes 8 groups, expected a multiple of 8", c.experts));
  require(c.deadline_s > 0, fmt::format("--deadline {}: expected more than 0 seconds", c.deadline_s));
  require(c.iterations >= 0 && c.warmup >= 0 && c.num_sets >= 0,
          "--iterations, --warmup and --sets: expected 0 or more");
}

void check_words(const BenchCase& c) {
  require(is_one_of(c.mode, {"throughput", "latency"}), "--mode " + c.mode + ": expected throughput or latency");
  require(is_one_of(c.layout, {"rank_major", "expert_major", "expert_padded"}),
          "--layout " + c.layout + ": expected rank_major, expert_major or expert_padded");
  require(is_one_of(c.payload, {"bf16", "fp16", "fp32", "fp8_f32", "fp8_ue8m0", "bytes"}),
          "--payload " + c.payload + ": expected bf16, fp16, fp32, fp8_f32, fp8_ue8m0 or bytes");
  require(is_one_of(c.codec, {"none", "fp8_f32", "fp8_ue8m0"}),
          "--codec " + c.codec + ": expected none, fp8_f32 or fp8_ue8m0");
  require(c.codec == "none" || c.payload == "bf16", "--codec " + c.codec + ": takes payload bf16, not " + c.payload);
  require(is_one_of(c.reduction, {"flat", "per_rank", "per_node"}),
          "--reduction " + c.reduction + ": expected flat, per_rank or per_node");
  require(c.reduction != "flat" || c.layout != "rank_major",
          "--reduction flat: needs an expert layout, not rank_major");
  require(is_one_of(c.routing, {"uniform", "grouped", "zipf"}),
          "--routing " + c.routing + ": expected uniform, grouped or zipf");
  require(is_one_of(c.ranks_as, {"processes", "threads"}),
          "--ranks-as " + c.ranks_as + ": expected processes or threads");
  require(is_one_of(c.output, {"window", "owned"}), "--output " + c.output + ": expected window or owned");
}

}  // namespace

void complete(BenchCase& bench_case) {
  check_words(bench_case);
  check_sizes(bench_case);
  const bool latency = bench_case.mode == "latency";
  if (bench_case.iterations == 0) bench_case.iterations = latency ? 200 : 20;
  if (bench_case.warmup == 0) bench_case.warmup = latency ? 20 : 4;
  if (bench_case.num_sets == 0) bench_case.num_sets = sets_beyond_cache(bench_case);
}

std::vector<std::size_t> block_bytes(const BenchCase& bench_case) {
  const auto hidden = static_cast<std::size_t>(bench_case.hidden);
  if (bench_case.payload == "fp8_f32") return {hidden, 4 * scale_count(bench_case)};
  if (bench_case.payload == "fp8_ue8m0") return {hidden, scale_count(bench_case)};
  return {hidden * element_bytes(bench_case.payload)};
}

std::size_t wire_row_bytes(const BenchCase& bench_case) {
  const auto hidden = static_cast<std::size_t>(bench_case.hidden);
  if (bench_case.codec == "fp8_f32") return hidden + 4 * scale_count(bench_case);
  if (bench_case.codec == "fp8_ue8m0") return hidden + scale_count(bench_case);
  std::size_t sum = 0;
  for (const std::size_t bytes : block_bytes(bench_case)) sum += bytes;
  return sum;
}

std::string combine_dtype(const BenchCase& bench_case) {
  return bench_case.payload == "fp16" || bench_case.payload == "fp32" ? bench_case.payload : "bf16";
}

std::size_t combine_row_bytes(const BenchCase& bench_case) {
  return static_cast<std::size_t>(bench_case.hidden) * element_bytes(combine_dtype(bench_case));
}

std::int64_t padded_capacity(const BenchCase& bench_case) {
  return bench_case.expert_capacity > 0 ? bench_case.expert_capacity : bench_case.ranks * bench_case.tokens;
}

int first_expert(const BenchCase& bench_case, int rank) {
  const int rest = bench_case.experts % bench_case.ranks;
  return rank * (bench_case.experts / bench_case.ranks) + std::min(rank, rest);
}

int owner_of(const BenchCase& bench_case, int expert) {
  const int share = bench_case.experts / bench_case.ranks;
  const int rest = bench_case.experts % bench_case.ranks;
  const int in_larger = rest * (share + 1);
  return expert < in_larger ? expert / (share + 1) : rest + (expert - in_larger) / share;
}

int node_of(const BenchCase& bench_case, int rank) {
  const int share = bench_case.ranks / bench_case.nodes;
  const int rest = bench_case.ranks % bench_case.nodes;
  const int in_larger = rest * (share + 1);
  return rank < in_larger ? rank / (share + 1) : rest + (rank - in_larger) / share;
}

Routing make_routing(const BenchCase& c, int set) {
  Routing routing;
  const std::vector<double> cumulative = c.routing == "zipf" ? zipf_cumulative(c.experts) : std::vector<double>{};
  const auto top_k = static_cast<std::size_t>(c.top_k);
  const std::size_t choices = static_cast<std::size_t>(c.tokens) * top_k;
  for (int rank = 0; rank < c.ranks; ++rank) {
    Random random(c.seed * 1000003 + static_cast<std::uint64_t>(set) * 4099 + static_cast<std::uint64_t>(rank));
    std::vector<std::int32_t> ids(choices);
    std::vector<float> weights(choices);
    for (std::size_t first = 0; first < choices; first += top_k) {
      const std::span<std::int32_t> row(ids.data() + first, top_k);
      if (c.routing == "uniform") distinct_uniform(random, c.experts, row);
      if (c.routing == "grouped") distinct_grouped(random, c, row);
      if (c.routing == "zipf") distinct_zipf(random, cumulative, row);
    }
    for (float& weight : weights) weight = static_cast<float>(random.unit());
    routing.ids.push_back(std::move(ids));
    routing.weights.push_back(std::move(weights));
  }
  return routing;
}

std::vector<RowSource> expected_rows(const BenchCase& c, const Routing& routing, int rank) {
  std::vector<RowSource> rows;
  const int first = first_expert(c, rank);
  const int num_local = first_expert(c, rank + 1) - first;
  std::vector<std::vector<RowSource>> by_expert(static_cast<std::size_t>(num_local));
  for (int source = 0; source < c.ranks; ++source) {
    const std::vector<std::int32_t>& ids = routing.ids[static_cast<std::size_t>(source)];
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      bool here = false;
      for (int choice = 0; choice < c.top_k; ++choice) {
        const int local = ids[static_cast<std::size_t>(token * c.top_k + choice)] - first;
        if (local < 0 || local >= num_local) continue;
        here = true;
        by_expert[static_cast<std::size_t>(local)].push_back({.rank = source, .token = token, .choice = choice});
      }
      if (here && c.layout == "rank_major") {
        rows.push_back({.rank = source, .token = token, .choice = -1, .row = static_cast<std::int64_t>(rows.size())});
      }
    }
  }
  if (c.layout == "rank_major") return rows;
  const std::int64_t capacity = padded_capacity(c);
  for (std::int64_t local = 0; local < num_local; ++local) {
    std::int64_t at = c.layout == "expert_padded" ? local * capacity : static_cast<std::int64_t>(rows.size());
    for (RowSource& source : by_expert[static_cast<std::size_t>(local)]) {
      source.row = at++;
      rows.push_back(source);
    }
  }
  return rows;
}

Necessary necessary_bytes(const BenchCase& c, const Routing& routing) {
  const auto num_ranks = static_cast<std::size_t>(c.ranks);
  std::vector<std::int64_t> rows_out(num_ranks), rows_in(num_ranks), choices_out(num_ranks), choices_in(num_ranks);
  std::vector<std::int64_t> last_token(num_ranks);
  for (std::size_t source = 0; source < num_ranks; ++source) {
    std::fill(last_token.begin(), last_token.end(), -1);
    for (std::int64_t i = 0; i < c.tokens * c.top_k; ++i) {
      const auto owner = static_cast<std::size_t>(owner_of(c, routing.ids[source][static_cast<std::size_t>(i)]));
      if (owner == source) continue;
      ++choices_out[source];
      ++choices_in[owner];
      if (last_token[owner] == i / c.top_k) continue;
      last_token[owner] = i / c.top_k;
      ++rows_out[source];
      ++rows_in[owner];
    }
  }
  const auto busiest = [](const std::vector<std::int64_t>& out, const std::vector<std::int64_t>& in) {
    return std::max(*std::max_element(out.begin(), out.end()), *std::max_element(in.begin(), in.end()));
  };
  const std::int64_t rows = busiest(rows_out, rows_in);
  const std::int64_t back = c.reduction == "flat" ? busiest(choices_out, choices_in) : rows;
  return {.dispatch_bytes = rows * static_cast<std::int64_t>(wire_row_bytes(c)),
          .combine_bytes = back * static_cast<std::int64_t>(combine_row_bytes(c))};
}

Buffer::Buffer(std::size_t bytes) : size_(bytes) {
  void* const memory = ::mmap(nullptr, std::max<std::size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(memory);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, std::max<std::size_t>(size_, 1));
}

RowPool::RowPool(const std::string& dtype, std::size_t row_bytes, std::uint64_t seed)
    : element_bytes_(element_bytes(dtype)), row_bytes_(row_bytes), bytes_(kPoolPlaces * element_bytes_ + row_bytes) {
  Random random(seed);
  for (std::size_t at = 0; at + element_bytes_ <= bytes_.size(); at += element_bytes_) {
    const std::uint32_t bits = random_bits(dtype, random);
    std::memcpy(&bytes_[at], &bits, element_bytes_);  // little-endian: the low bytes
  }
}

const std::byte* RowPool::row(std::uint64_t key) const {
  return &bytes_[(mix(key) % kPoolPlaces) * element_bytes_];
}

RowPools make_pools(const BenchCase& c) {
  RowPools pools{.blocks = {}, .results = RowPool(combine_dtype(c), combine_row_bytes(c), c.seed + 77)};
  const std::vector<std::string> dtypes = block_dtypes(c);
  for (std::size_t b = 0; b < dtypes.size(); ++b) pools.blocks.emplace_back(dtypes[b], block_bytes(c)[b], c.seed + b);
  return pools;
}

std::uint64_t input_key(int set, int rank, std::int64_t token, int which) {
  return (static_cast<std::uint64_t>(set) << 52) ^ (static_cast<std::uint64_t>(rank) << 40) ^
         (static_cast<std::uint64_t>(token) << 8) ^ static_cast<std::uint64_t>(which);
}

std::uint64_t result_key(int set, int rank, std::int64_t token, int part) {
  return ~input_key(set, rank, token, part);
}

InputSet make_input(const BenchCase& c, const RowPools& pools, const Routing& routing, int set, int rank) {
  InputSet input{.index = set,
                 .blocks = {},
                 .ids = routing.ids[static_cast<std::size_t>(rank)],
                 .weights = routing.weights[static_cast<std::size_t>(rank)],
                 .results = {}};
  for (std::size_t b = 0; b < pools.blocks.size(); ++b) {
    const RowPool& pool = pools.blocks[b];
    Buffer block(static_cast<std::size_t>(c.tokens) * pool.row_bytes());
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      std::memcpy(block.data() + static_cast<std::size_t>(token) * pool.row_bytes(),
                  pool.row(input_key(set, rank, token, static_cast<int>(b))), pool.row_bytes());
    }
    input.blocks.push_back(std::move(block));
  }
  const std::vector<RowSource> rows = expected_rows(c, routing, rank);
  const int num_local = first_expert(c, rank + 1) - first_expert(c, rank);
  input.result_rows =
      c.layout == "expert_padded" ? num_local * padded_capacity(c) : static_cast<std::int64_t>(rows.size());
  const std::size_t row_bytes = pools.results.row_bytes();
  input.results = Buffer(static_cast<std::size_t>(input.result_rows) * row_bytes);
  for (const RowSource& row : rows) {
    const int part = row.choice < 0 ? rank : row.choice;
    std::memcpy(input.results.data() + static_cast<std::size_t>(row.row) * row_bytes,
                pools.results.row(result_key(set, row.rank, row.token, part)), row_bytes);
  }
  return input;
}

}  // namespace ferry::bench
