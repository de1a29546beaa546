// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/fabric/discover.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace ferry::net::fabric {
namespace {

/// Ferry's names and libfabric's.
const char* provider_of(const std::string& network) {
  if (network == "tcp") return "tcp;ofi_rxm";
  if (network == "verbs") return "verbs;ofi_rxm";
  return network == "shm" ? "shm" : "efa";
}

/// Software providers store rows and signals with plain stores of a CPU. A reader that acquires the signal sees the rows where
/// the CPU keeps the order of stores, which x86 does.
const char* why_not_this_cpu(const std::string& network) {
#if defined(__x86_64__)
  static_cast<void>(network);
  return "";
#else
  const bool software = network == "tcp" || network == "shm";
  return software ? "its signals rely on the order of stores of x86-64, and this CPU is another" : "";
#endif
}

constexpr std::array<std::pair<const char*, std::uint32_t>, 6> kTrafficClasses{
    {{"best_effort", FI_TC_BEST_EFFORT},
     {"low_latency", FI_TC_LOW_LATENCY},
     {"dedicated_access", FI_TC_DEDICATED_ACCESS},
     {"bulk_data", FI_TC_BULK_DATA},
     {"scavenger", FI_TC_SCAVENGER},
     {"network_ctrl", FI_TC_NETWORK_CTRL}}};

/// What is asked of a provider, the best first.
struct Wish {
  bool ordered;
  std::uint64_t delivered_flag;
};
constexpr std::array<Wish, 4> kWishes{{{true, FI_DELIVERY_COMPLETE},
                                       {true, FI_TRANSMIT_COMPLETE},
                                       {false, FI_DELIVERY_COMPLETE},
                                       {false, FI_TRANSMIT_COMPLETE}}};

/// A completed transmission has been acknowledged by the peer's card where the transport is reliable hardware; software may only
/// have taken the bytes over.
///
/// shm of 1.17 lists send-after-send as its only order, and yet agrees when it is asked for more: not relied upon.
bool is_enough(const std::string& network, const Wish& wish) {
  if (wish.ordered && network == "shm") return false;
  return wish.delivered_flag == FI_DELIVERY_COMPLETE || network == "verbs";
}

Info make_hints(const Library& library, const std::string& network, std::uint32_t traffic_class, const Wish& wish) {
  Info hints(library.dupinfo(nullptr));
  hints->caps = FI_MSG | FI_RMA | FI_WRITE | FI_REMOTE_WRITE;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
  hints->domain_attr->threading = FI_THREAD_SAFE;
  hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->fabric_attr->prov_name = ::strdup(provider_of(network));  // freed with the hints
  hints->tx_attr->tclass = traffic_class;
  hints->domain_attr->tclass = traffic_class;
  if (network == "tcp") hints->addr_format = FI_SOCKADDR_IN;
  hints->tx_attr->op_flags = wish.delivered_flag;
  if (wish.ordered) hints->tx_attr->msg_order = hints->rx_attr->msg_order = FI_ORDER_RMA_WAW;
  return hints;
}

/// Names of interfaces whose addresses reach this machine only.
std::vector<std::string> loopback_interfaces() {
  std::vector<std::string> names;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return names;
  for (const ifaddrs* one = list; one != nullptr; one = one->ifa_next) {
    if ((one->ifa_flags & IFF_LOOPBACK) != 0) names.emplace_back(one->ifa_name);
  }
  ::freeifaddrs(list);
  return names;
}

std::string pci_address(const fi_info& info) {
  if (info.nic == nullptr || info.nic->bus_attr == nullptr || info.nic->bus_attr->bus_type != FI_BUS_PCI) return {};
  const fi_pci_attr& pci = info.nic->bus_attr->attr.pci;
  return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", pci.domain_id, pci.bus_id, pci.device_id, pci.function_id);
}

bool promises_order(const fi_info& info) {
  constexpr std::uint64_t kWriteAfterWrite = FI_ORDER_RMA_WAW | FI_ORDER_WAW;
  return (info.tx_attr->msg_order & kWriteAfterWrite) != 0 && info.ep_attr->max_order_waw_size >= kMaxPieceBytes;
}

std::string why_unusable(const fi_info& info, const std::string& network, std::uint32_t traffic_class) {
  if (info.domain_attr->mr_key_size > sizeof(std::uint64_t))
    return fmt::format("its keys of {} bytes do not fit into 64 bits", info.domain_attr->mr_key_size);
  if (traffic_class != 0 && info.tx_attr->tclass != traffic_class)
    return fmt::format(
        "provider {} does not take a traffic class; leave traffic_class empty and mark the traffic of {} "
        "outside (for tcp: tc or nftables)",
        info.fabric_attr->prov_name, network);
  return {};
}

void add_offers(const Library& library, const fi_info* list, const std::string& network, std::uint32_t traffic_class,
                const Wish& wish, Found& found) {
  const std::vector<std::string> loopbacks = loopback_interfaces();
  for (const fi_info* info = list; info != nullptr; info = info->next) {
    const std::string name = info->domain_attr->name;
    const auto known = [&](const Offer& offer) { return offer.nic.name == name; };
    if (std::any_of(found.offers.begin(), found.offers.end(), known)) continue;  // the same card under another address
    std::string why_not = why_unusable(*info, network, traffic_class);
    if (!why_not.empty()) {
      found.why_not = std::move(why_not);
      continue;
    }
    const bool is_loopback = std::find(loopbacks.begin(), loopbacks.end(), name) != loopbacks.end();
    Offer offer{.nic = {.name = name, .pci = pci_address(*info), .is_loopback = is_loopback},
                .info = Info(library.dupinfo(info)),
                .ordered = wish.ordered && promises_order(*info),
                .delivered_flag = wish.delivered_flag};
    offer.info->tx_attr->op_flags = 0;  // every write says what it wants
    found.offers.push_back(std::move(offer));
  }
}

}  // namespace

std::uint32_t parse_traffic_class(const std::string& text) {
  if (text.empty()) return FI_TC_UNSPEC;
  std::string words;
  for (const auto& [word, number] : kTrafficClasses) {
    if (text == word) return number;
    words += std::string(word) + ", ";
  }
  constexpr int kMaxDscp = 63;
  const std::string prefix = "dscp:";
  int dscp = -1;
  if (text.rfind(prefix, 0) == 0) {
    const char* end = text.data() + text.size();
    const auto [stop, status] = std::from_chars(text.data() + prefix.size(), end, dscp);
    if (status != std::errc() || stop != end) dscp = -1;
  }
  if (dscp < 0 || dscp > kMaxDscp) {
    refuse("ferry::net::make_engine", "traffic_class", fmt::format("'{}'", text),
           fmt::format("{}or dscp:0 to dscp:{}", words, kMaxDscp));
  }
  return fi_tc_dscp_set(static_cast<std::uint8_t>(dscp));
}

Found discover(const Library& library, const std::string& network, std::uint32_t traffic_class) {
  Found found;
  found.why_not = why_not_this_cpu(network);
  if (!found.why_not.empty()) return found;
  long status = 0;
  // Asked for, order is part of what the provider then promises; where it cannot, posts are gated.
  for (const Wish& wish : kWishes) {
    if (!is_enough(network, wish)) continue;
    const Info hints = make_hints(library, network, traffic_class, wish);
    fi_info* list = nullptr;
    status = library.getinfo(kApiVersion, nullptr, nullptr, 0, hints.get(), &list);
    if (status != 0) continue;
    const Info owner(list);
    add_offers(library, list, network, traffic_class, wish, found);
    if (!found.offers.empty()) {
      found.why_not.clear();
      return found;
    }
  }
  if (found.why_not.empty()) {
    found.why_not = status == -FI_ENODATA
                        ? fmt::format(
                              "libfabric has no provider {} with a usable device on this machine; use tcp, or loopback "
                              "where all ranks are here",
                              provider_of(network))
                        : describe_error(fmt::format("provider {}", provider_of(network)).c_str(), status);
  }
  return found;
}

std::string describe(const Offer& offer, bool ordered) {
  const int mode = offer.info->domain_attr->mr_mode;
  std::string text = ordered ? "ordered posts" : "gated posts (one round trip more)";
  text += (mode & FI_MR_ALLOCATED) != 0 || (mode & FI_MR_LOCAL) != 0 ? ", windows are locked in memory"
                                                                     : ", windows are not locked";
  text += ", registers host memory; GPU memory is neither registered nor staged yet";
  return text;
}

}  // namespace ferry::net::fabric
