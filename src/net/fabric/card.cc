// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/fabric/card.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "core/check.h"

namespace ferry::net::fabric {
namespace {

constexpr std::uint64_t kAccess = FI_WRITE | FI_REMOTE_WRITE;

/// Whether a completion queue's descriptor becomes ready for whatever needs progress. shm's does not when a peer writes (seen:
/// twenty times slower than naps), others were not run.
bool tells_by_descriptor(const fi_info& info) {
  return std::string_view(info.fabric_attr->prov_name).find("tcp") != std::string_view::npos;
}

/// Calls a function that makes an object through a pointer.
template <class Object, class Make>
Fid<Object> make(const char* what, Make&& make_it) {
  Object* object = nullptr;
  check_status(what, make_it(&object));
  return Fid<Object>(object);
}

}  // namespace

Card::Card(const Library& library, Offer offer) : offer_(std::move(offer)) {
  fi_info* info = offer_.info.get();
  fabric_ = make<fid_fabric>("cannot open the fabric",
                             [&](fid_fabric** made) { return library.fabric(info->fabric_attr, made, nullptr); });
  domain_ = make<fid_domain>("cannot open the network card",
                             [&](fid_domain** made) { return fi_domain(fabric_.get(), info, made, nullptr); });
  fi_av_attr peers{};
  peers.type = info->domain_attr->av_type == FI_AV_UNSPEC ? FI_AV_TABLE : info->domain_attr->av_type;
  addresses_ = make<fid_av>("cannot make an address table",
                            [&](fid_av** made) { return fi_av_open(domain_.get(), &peers, made, nullptr); });
  fi_cq_attr queue{};
  queue.format = FI_CQ_FORMAT_CONTEXT;
  queue.wait_obj = FI_WAIT_FD;
  fid_cq* waitable = nullptr;
  if (tells_by_descriptor(*info) && fi_cq_open(domain_.get(), &queue, &waitable, nullptr) == 0) {
    completions_.reset(waitable);
    if (fi_control(&completions_->fid, FI_GETWAIT, &wait_fd_) != 0) wait_fd_ = -1;
  }
  queue.wait_obj = FI_WAIT_NONE;
  if (!completions_)
    completions_ = make<fid_cq>("cannot make a completion queue",
                                [&](fid_cq** made) { return fi_cq_open(domain_.get(), &queue, made, nullptr); });
  target_ = open_endpoint();
  std::size_t bytes = 0;
  static_cast<void>(fi_getname(&target_->fid, nullptr, &bytes));  // says how long it is
  address_.resize(bytes);
  check_status("cannot learn the endpoint's address", fi_getname(&target_->fid, address_.data(), &bytes));
  address_.resize(bytes);
}

int Card::prepare_wait() {
  if (wait_fd_ < 0) return -1;
  fid* queue = &completions_->fid;
  return fi_trywait(fabric_.get(), &queue, 1) == 0 ? wait_fd_ : -1;
}

Fid<fid_ep> Card::open_endpoint() {
  Fid<fid_ep> endpoint = make<fid_ep>("cannot open an endpoint", [&](fid_ep** made) {
    return fi_endpoint(domain_.get(), offer_.info.get(), made, nullptr);
  });
  check_status("cannot bind addresses", fi_ep_bind(endpoint.get(), &addresses_->fid, 0));
  check_status("cannot bind completions", fi_ep_bind(endpoint.get(), &completions_->fid, FI_TRANSMIT | FI_RECV));
  check_status("cannot enable the endpoint", fi_enable(endpoint.get()));
  return endpoint;
}

fi_addr_t Card::add_peer(const std::vector<std::byte>& address) {
  fi_addr_t peer = FI_ADDR_UNSPEC;
  const int added = fi_av_insert(addresses_.get(), address.data(), 1, &peer, 0, nullptr);
  if (added != 1 || peer == FI_ADDR_UNSPEC)
    check_status("cannot use the peer's address", added < 0 ? added : -FI_EADDRNOTAVAIL);
  return peer;
}

Region Card::register_memory(std::byte* data, std::size_t bytes) {
  const int mode = offer_.info->domain_attr->mr_mode;
  Region region;
  const std::uint64_t wanted_key = (mode & FI_MR_PROV_KEY) != 0 ? 0 : next_key_++;
  fid_mr* handle = nullptr;
  const int status = fi_mr_reg(domain_.get(), data, bytes, kAccess, 0, wanted_key, 0, &handle, nullptr);
  if (status < 0) {
    refuse_unsupported(
        "ferry::net::make_engine", "network",
        fmt::format("{}; provider {} locks windows in memory: see ulimit -l, or make them smaller (ferry plan)",
                    describe_error(fmt::format("cannot register a window of {} bytes", bytes).c_str(), status),
                    offer_.info->fabric_attr->prov_name));
  }
  region.handle.reset(handle);
  region.base = (mode & FI_MR_VIRT_ADDR) != 0 ? reinterpret_cast<std::uint64_t>(data) : 0;
  region.key = fi_mr_key(handle);
  region.local = fi_mr_desc(handle);
  return region;
}

}  // namespace ferry::net::fabric
