// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// One network card, opened: where peers write to us, what we register with it, and its completions.
#pragma once

#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "net/fabric/discover.h"

namespace ferry::net::fabric {

/// Memory that this card may read and peers may write.
struct Region {
  Fid<fid_mr> handle;
  std::uint64_t base = 0;  ///< what a peer adds offsets to
  std::uint64_t key = 0;
  void* local = nullptr;  ///< what goes along with a source that lies here
};

class Card {
 public:
  /// Throws Error(unsupported) with the step that failed.
  Card(const Library& library, Offer offer);

  const Offer& offer() const noexcept { return offer_; }
  const std::vector<std::byte>& address() const noexcept { return address_; }
  bool needs_local_regions() const noexcept { return (offer_.info->domain_attr->mr_mode & FI_MR_LOCAL) != 0; }

  Region register_memory(std::byte* data, std::size_t bytes);
  /// An endpoint of its own towards one peer, and the peer's address on it.
  Fid<fid_ep> open_endpoint();
  fi_addr_t add_peer(const std::vector<std::byte>& address);
  fid_cq* completions() const noexcept { return completions_.get(); }
  /// A descriptor that is readable when completions() is worth reading; -1: it is now, or this provider has none.
  int prepare_wait();
  /// From now on prepare_wait() says -1: fi_trywait() of 1.17's tcp;ofi_rxm crashes once an endpoint of the queue was closed.
  void never_wait() noexcept { wait_fd_ = -1; }

 private:
  // In the order in which they are made; destroyed in the reverse one.
  Offer offer_;
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_av> addresses_;
  Fid<fid_cq> completions_;
  int wait_fd_ = -1;
  Fid<fid_ep> target_;
  std::vector<std::byte> address_;
  std::uint64_t next_key_ = 1;
};

}  // namespace ferry::net::fabric
