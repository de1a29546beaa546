// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Networks of libfabric as a provider of the engine. A put is an RDMA write, a post an RDMA write of 8 bytes.
//
// Every peer has endpoints of its own, one per card: a peer that is slow or gone takes nothing from the others, and closing its
// endpoints ends whatever is on its way to it. Memory that peers may write stays registered, and mapped, until the engine is
// destroyed: nobody here can know when the last of them has stopped writing to windows of an earlier membership.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "bootstrap/bytes.h"
#include "core/check.h"
#include "net/command.h"
#include "net/fabric.h"
#include "net/fabric/card.h"

namespace ferry::net {
namespace {

using fabric::Card;
using fabric::Fid;
using fabric::Region;

constexpr std::uint32_t kMagic = 0x454e5246;  // "FRNE"
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kMaxOpenPerPeer = 256;  ///< transfers that may be on their way to one peer
constexpr std::size_t kTransfersPerBlock = 256;
constexpr const char* kOpen = "ferry::net::Engine::open";

/// A peer as the cards see it.
struct PeerLink {
  struct Path {
    Fid<fid_ep> endpoint;
    fi_addr_t address = FI_ADDR_UNSPEC;
  };
  int peer = -1;
  std::vector<Path> paths;  // by card
  std::size_t open_transfers = 0;
  bool ended = false;
};

/// A peer's window, and the way there.
class FabricWindow final : public RemoteWindow {
 public:
  struct Place {
    std::uint64_t base = 0;
    std::uint64_t key = 0;
  };
  FabricWindow(std::uint64_t bytes, std::shared_ptr<PeerLink> link, std::vector<Place> places)
      : RemoteWindow(bytes), link_(std::move(link)), places_(std::move(places)) {}
  const std::shared_ptr<PeerLink>& link() const noexcept { return link_; }
  const Place& place(std::size_t card) const noexcept { return places_[card]; }

 private:
  std::shared_ptr<PeerLink> link_;
  std::vector<Place> places_;  // by our card
};

/// One write on its way. Providers keep its address until it completes, and read `total` from it.
struct Transfer {
  fi_context2 context{};  // first: completions come back with its address
  std::uint64_t total = 0;
  Ticket ticket = 0;
  std::shared_ptr<PeerLink> link;  // null: not in use
  bool failed_already = false;     // reported when its peer was given up
  std::size_t block = 0;
};

/// Transfers in blocks that never move, each registered with every card that wants to know its sources.
class TransferPool {
 public:
  explicit TransferPool(std::deque<Card>& cards) : cards_(cards) {}

  Transfer& take() {
    if (free_.empty()) grow();
    Transfer& transfer = *free_.back();
    free_.pop_back();
    return transfer;
  }
  void give_back(Transfer& transfer) {
    transfer.link = nullptr;
    transfer.failed_already = false;
    free_.push_back(&transfer);
  }
  void* local(const Transfer& transfer, std::size_t card) const {
    const std::vector<Region>& regions = blocks_[transfer.block].regions;
    return regions.empty() ? nullptr : regions[card].local;
  }
  template <class Visit>
  void for_each(Visit visit) {
    for (Block& block : blocks_) {
      for (Transfer& transfer : block.transfers) visit(transfer);
    }
  }

 private:
  struct Block {
    std::vector<Transfer> transfers;
    std::vector<Region> regions;  // by card; empty where sources need none
  };

  void grow() {
    Block& block = blocks_.emplace_back();
    block.transfers = std::vector<Transfer>(kTransfersPerBlock);
    for (Transfer& transfer : block.transfers) {
      transfer.block = blocks_.size() - 1;
      free_.push_back(&transfer);
    }
    if (!cards_.front().needs_local_regions()) return;
    for (Card& card : cards_) {
      block.regions.push_back(card.register_memory(reinterpret_cast<std::byte*>(block.transfers.data()),
                                                   block.transfers.size() * sizeof(Transfer)));
    }
  }

  std::deque<Card>& cards_;
  std::deque<Block> blocks_;
  std::vector<Transfer*> free_;
};

/// Windows of this rank: kept for as long as peers may write there.
class OwnWindows {
 public:
  /// One region per card.
  const std::vector<Region>& add(const std::shared_ptr<Memory>& memory, std::deque<Card>& cards) {
    give_pages_back();
    Entry& entry = entries_[memory->data()];
    if (entry.memory != memory) {
      entry.regions.clear();
      entry.memory = memory;
      entry.locked = cards.front().needs_local_regions();
      for (Card& card : cards) entry.regions.push_back(card.register_memory(memory->data(), memory->size()));
    }
    return entry.regions;
  }

  /// What goes along with a source; throws where it lies in no window.
  void* local(const std::byte* source, std::size_t bytes, std::size_t card) const {
    auto next = entries_.upper_bound(const_cast<std::byte*>(source));
    if (next != entries_.begin()) {
      const Entry& entry = std::prev(next)->second;
      if (source + bytes <= entry.memory->data() + entry.memory->size()) return entry.regions[card].local;
    }
    throw std::runtime_error(
        fmt::format("{} bytes at {} lie in no window of this rank; this provider reads from windows only", bytes,
                    static_cast<const void*>(source)));
  }

 private:
  struct Entry {
    std::shared_ptr<Memory> memory;
    std::vector<Region> regions;
    bool locked = false;
    bool emptied = false;
  };

  /// Windows that nobody but us knows any more are kept for late writers only: their contents are not.
  void give_pages_back() {
    for (auto& [data, entry] : entries_) {
      if (entry.memory.use_count() != 1 || entry.locked || entry.emptied) continue;
      const int advice = entry.memory->fd() < 0 ? MADV_DONTNEED : MADV_REMOVE;
      entry.emptied = ::madvise(entry.memory->data(), entry.memory->size(), advice) == 0;
    }
  }

  std::map<std::byte*, Entry> entries_;
};

class FabricCarrier final : public Carrier {
 public:
  FabricCarrier(const EngineConfig& config, const fabric::Library& library, std::vector<fabric::Offer> offers) {
    provider_.name = config.network;
    // Several cards share a peer's puts, so that no order of one of them says anything.
    provider_.ordered = offers.size() == 1 && offers.front().ordered && !config.gated_posts;
    delivered_ = FI_COMPLETION | offers.front().delivered_flag;
    std::vector<std::string> names;
    for (const fabric::Offer& offer : offers) names.push_back(offer.nic.name);
    provider_.detail =
        fmt::format("{}: {}", fmt::join(names, ", "), fabric::describe(offers.front(), provider_.ordered));
    for (fabric::Offer& offer : offers) cards_.emplace_back(library, std::move(offer));
  }
  FabricCarrier(const FabricCarrier&) = delete;
  FabricCarrier& operator=(const FabricCarrier&) = delete;
  ~FabricCarrier() override {
    // Endpoints first: they know the transfers.
    for (auto& [peer, link] : links_) link->paths.clear();
    for (const auto& link : ending_) link->paths.clear();
  }

  const Provider& provider() const override { return provider_; }
  std::size_t max_put_bytes() const override { return fabric::kMaxPieceBytes; }
  bool must_be_driven() const override { return true; }

  bool prepare_sleep(std::vector<pollfd>& watched) override {
    const std::lock_guard lock(library_mutex_);
    if (!ending_.empty()) return false;
    for (Card& card : cards_) {
      const int fd = card.prepare_wait();
      if (fd < 0) return false;
      watched.push_back({fd, POLLIN, 0});
    }
    return true;
  }

  std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) override {
    const auto lock = lock_patiently();
    const std::vector<Region>& regions = own_.add(memory, cards_);
    bootstrap::ByteWriter writer;
    writer.put(kMagic).put(kVersion).put_text(provider_.name).put(static_cast<std::uint64_t>(memory->size()));
    writer.put(static_cast<std::uint32_t>(cards_.size()));
    for (std::size_t card = 0; card < cards_.size(); ++card) {
      const std::vector<std::byte>& address = cards_[card].address();
      writer.put(static_cast<std::uint32_t>(address.size())).put_raw(address);
      writer.put(regions[card].base).put(regions[card].key);
    }
    return writer.take();
  }

  void acknowledge_posts() override { acknowledges_.store(true, std::memory_order_relaxed); }

  std::unique_ptr<RemoteWindow> attach(int peer, std::span<const std::byte> description,
                                       std::shared_ptr<Memory>) override {
    const Description theirs = parse(peer, description);
    const auto lock = lock_patiently();
    std::shared_ptr<PeerLink>& link = links_[peer];
    if (!link) {
      auto fresh = std::make_shared<PeerLink>();
      fresh->peer = peer;
      for (std::size_t card = 0; card < cards_.size(); ++card) {
        const std::vector<std::byte>& address = theirs.cards[card % theirs.cards.size()].address;
        fresh->paths.push_back({cards_[card].open_endpoint(), cards_[card].add_peer(address)});
      }
      link = std::move(fresh);
    }
    std::vector<FabricWindow::Place> places;
    for (std::size_t card = 0; card < cards_.size(); ++card)
      places.push_back(theirs.cards[card % theirs.cards.size()].place);
    return std::make_unique<FabricWindow>(theirs.size_bytes, link, std::move(places));
  }

  void abandon(int peer, std::uint64_t) override {
    const auto found = links_.find(peer);
    if (found == links_.end()) return;
    const auto lock = lock_patiently();
    found->second->ended = true;
    ending_.push_back(std::move(found->second));
    links_.erase(found);
  }

  Start start_put(const PutRequest& request) override {
    const std::lock_guard lock(library_mutex_);
    const std::size_t card = turn_++ % cards_.size();
    void* local = cards_[card].needs_local_regions() ? own_.local(request.source, request.bytes, card) : nullptr;
    return start(request.window, card, request.offset, request.ticket, [&](Transfer&, iovec& piece) {
      piece = {const_cast<std::byte*>(request.source), request.bytes};
      return Sending{local, provider_.ordered ? FI_COMPLETION : delivered_};
    });
  }

  /// On an ordered provider a post is complete when the provider has passed it on, with everything before it: to the kernel, or to
  /// a card that repeats it until it is acknowledged. What a process that ends may still lose is asked for at the end.
  Start start_post(const PostRequest& request) override {
    const std::lock_guard lock(library_mutex_);
    constexpr std::size_t kCard = 0;  // an ordered provider has no other; a gated post needs no order
    return start(request.window, kCard, request.offset, request.ticket, [&](Transfer& transfer, iovec& piece) {
      transfer.total = request.total;
      piece = {&transfer.total, sizeof(transfer.total)};
      const bool passed_on = provider_.ordered && !acknowledges_.load(std::memory_order_relaxed);
      return Sending{pool_.local(transfer, kCard), passed_on ? FI_COMPLETION : delivered_};
    });
  }

  bool progress(std::vector<Completion>& completions) override {
    const std::lock_guard lock(library_mutex_);
    bool moved = false;
    for (Card& card : cards_) moved |= read(card, completions);
    if (!ending_.empty()) end_links(completions), moved = true;
    return moved;
  }

 private:
  struct Description {
    struct OneCard {
      std::vector<std::byte> address;
      FabricWindow::Place place;
    };
    std::uint64_t size_bytes = 0;
    std::vector<OneCard> cards;
  };
  struct Sending {
    void* local;
    std::uint64_t flags;
  };

  /// For threads that may not wait for ever: a provider can get stuck inside a call, shm when a peer died there.
  std::unique_lock<std::timed_mutex> lock_patiently() {
    constexpr std::chrono::seconds kPatience{10};
    std::unique_lock<std::timed_mutex> lock(library_mutex_, kPatience);
    if (!lock.owns_lock()) {
      throw Error(ErrorCode::kTimeout,
                  fmt::format("ferry::net::Engine: the network proxy has been inside provider {} for {} s",
                              provider_.name, kPatience.count()));
    }
    return lock;
  }

  Description parse(int peer, std::span<const std::byte> bytes) const {
    bootstrap::ByteReader reader(bytes);
    const auto magic = reader.get<std::uint32_t>();
    const auto version = reader.get<std::uint16_t>();
    const std::string name = reader.get_text();
    if (!reader.ok() || magic != kMagic || version != kVersion || name != provider_.name) {
      refuse(kOpen, "description", fmt::format("of another kind or version (from rank {})", peer),
             fmt::format("what a {} engine of the same Ferry describes", provider_.name));
    }
    Description theirs;
    theirs.size_bytes = reader.get<std::uint64_t>();
    const auto count = reader.get<std::uint32_t>();
    for (std::uint32_t i = 0; i < count && reader.ok(); ++i) {
      const auto address = reader.get_raw(reader.get<std::uint32_t>());
      Description::OneCard card{.address = {address.begin(), address.end()}, .place = {}};
      card.place.base = reader.get<std::uint64_t>();
      card.place.key = reader.get<std::uint64_t>();
      theirs.cards.push_back(std::move(card));
    }
    if (!reader.finished() || theirs.cards.empty() || theirs.size_bytes > kMaxWindowBytes) {
      refuse(kOpen, "description", fmt::format("damaged (from rank {})", peer),
             fmt::format("a window of at most 2^{} bytes and its cards", kOffsetBits));
    }
    return theirs;
  }

  /// `fill` says what is written and how.
  template <class Fill>
  Start start(RemoteWindow* where, std::size_t card, std::uint64_t offset, Ticket ticket, Fill fill) {
    const auto& window = static_cast<const FabricWindow&>(*where);
    PeerLink& link = *window.link();
    if (link.ended || link.open_transfers >= kMaxOpenPerPeer) return Start::kBusy;
    Transfer& transfer = pool_.take();
    iovec piece{};
    Sending sending = fill(transfer, piece);
    fi_rma_iov target{window.place(card).base + offset, piece.iov_len, window.place(card).key};
    fi_msg_rma message{};
    message.msg_iov = &piece;
    message.desc = &sending.local;
    message.iov_count = 1;
    message.addr = link.paths[card].address;
    message.rma_iov = &target;
    message.rma_iov_count = 1;
    message.context = &transfer.context;
    const ssize_t status = fi_writemsg(link.paths[card].endpoint.get(), &message, sending.flags);
    if (status != 0) {
      pool_.give_back(transfer);
      if (status == -FI_EAGAIN) return Start::kBusy;
      throw std::runtime_error(fabric::describe_error("cannot write", status));
    }
    transfer.ticket = ticket;
    transfer.link = window.link();
    ++link.open_transfers;
    return Start::kStarted;
  }

  bool read(Card& card, std::vector<Completion>& completions) {
    constexpr std::size_t kAtOnce = 64;
    std::array<fi_cq_entry, kAtOnce> entries;
    bool moved = false;
    while (true) {
      const ssize_t count = fi_cq_read(card.completions(), entries.data(), entries.size());
      if (count == -FI_EAGAIN || count == 0) return moved;
      moved = true;
      if (count == -FI_EAVAIL) {
        read_failure(card, completions);
        continue;
      }
      if (count < 0) throw std::runtime_error(fabric::describe_error("completions cannot be read", count));
      for (ssize_t i = 0; i < count; ++i) finish(entries[static_cast<std::size_t>(i)].op_context, {}, completions);
    }
  }

  void read_failure(Card& card, std::vector<Completion>& completions) {
    fi_cq_err_entry entry{};
    const ssize_t count = fi_cq_readerr(card.completions(), &entry, 0);
    if (count == -FI_EAGAIN) return;
    if (count < 0) throw std::runtime_error(fabric::describe_error("a failure cannot be read", count));
    finish(entry.op_context, fabric::describe_error("a write failed", -entry.err), completions);
  }

  void finish(void* context, std::string failure, std::vector<Completion>& completions) {
    if (context == nullptr) return;  // not of a transfer: a connection that a peer has ended
    Transfer& transfer = *static_cast<Transfer*>(context);
    if (!transfer.link) return;
    --transfer.link->open_transfers;
    if (!transfer.failed_already) completions.push_back({transfer.ticket, std::move(failure)});
    pool_.give_back(transfer);
  }

  /// Closes the endpoints of peers that were given up. Closing ends their transfers: what the provider does not hand back as
  /// completed is reported here, and its memory is not used again, because it may still turn up.
  void end_links(std::vector<Completion>& completions) {
    for (Card& card : cards_) card.never_wait();
    for (const auto& link : ending_) link->paths.clear();
    ending_.clear();
    for (Card& card : cards_) read(card, completions);
    pool_.for_each([&](Transfer& transfer) {
      if (!transfer.link || transfer.failed_already || !transfer.link->ended) return;
      transfer.failed_already = true;
      completions.push_back({transfer.ticket, "its peer was given up"});
    });
  }

  Provider provider_;
  std::deque<Card> cards_;
  OwnWindows own_;
  TransferPool pool_{cards_};
  std::map<int, std::shared_ptr<PeerLink>> links_;  // by peer; attach() and abandon(), one at a time
  std::vector<std::shared_ptr<PeerLink>> ending_;   // given up, to be closed by the proxy's thread
  /// Around every use of libfabric: opening an endpoint while another thread reads completions crashes 1.17, whatever threading
  /// was asked for.
  std::timed_mutex library_mutex_;
  std::uint64_t delivered_ = 0;  // flags of a write whose completion means delivery
  std::atomic<bool> acknowledges_{false};
  std::size_t turn_ = 0;
};

}  // namespace

std::unique_ptr<Carrier> make_fabric_carrier(const EngineConfig& config) {
  constexpr const char* kFunction = "ferry::net::make_engine";
  std::string why_not;
  const fabric::Library* library = fabric::open_library(why_not);
  const std::uint32_t traffic_class = library == nullptr ? 0 : fabric::parse_traffic_class(config.traffic_class);
  fabric::Found found;
  if (library != nullptr) found = fabric::discover(*library, config.network, traffic_class);
  if (found.offers.empty()) {
    const std::string& reason = library == nullptr ? why_not : found.why_not;
    refuse_unsupported(kFunction, "network", fmt::format("network {}: {}", config.network, reason));
  }
  std::vector<Nic> nics;
  for (const fabric::Offer& offer : found.offers) nics.push_back(offer.nic);
  std::vector<fabric::Offer> chosen;
  for (const int index : choose_nics(config, nics))
    chosen.push_back(std::move(found.offers[static_cast<std::size_t>(index)]));
  return std::make_unique<FabricCarrier>(config, *library, std::move(chosen));
}

std::vector<Provider> find_fabric_networks() {
  std::vector<Provider> networks;
  std::string why_not;
  const fabric::Library* library = fabric::open_library(why_not);
  for (const char* name : {"tcp", "shm", "verbs", "efa"}) {
    Provider provider;
    provider.name = name;
    fabric::Found found;
    if (library != nullptr) found = fabric::discover(*library, name, 0);
    provider.why_not = library == nullptr ? why_not : found.why_not;
    if (!found.offers.empty()) {
      std::vector<std::string> cards;
      for (const fabric::Offer& offer : found.offers)
        cards.push_back(offer.nic.pci.empty() ? offer.nic.name : offer.nic.name + " at " + offer.nic.pci);
      provider.ordered = found.offers.front().ordered;
      provider.detail =
          fmt::format("{}; {}", fmt::join(cards, ", "), fabric::describe(found.offers.front(), provider.ordered));
    }
    networks.push_back(std::move(provider));
  }
  return networks;
}

}  // namespace ferry::net
