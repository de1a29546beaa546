// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a provider (loopback today, libfabric later) does for the proxy. The proxy does the rest: rings, checks,
// merging, fairness, gated posts, completion in order, errors.
#pragma once

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bootstrap/memory.h"
#include "net/engine.h"

namespace ferry::net {

/// A peer's window as a provider knows it; destroyed by the proxy's thread (or with the engine) once no command needs
/// it.
class RemoteWindow {
 public:
  explicit RemoteWindow(std::uint64_t size_bytes) : size_bytes_(size_bytes) {}
  RemoteWindow(const RemoteWindow&) = delete;
  RemoteWindow& operator=(const RemoteWindow&) = delete;
  virtual ~RemoteWindow() = default;
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }

  std::uint64_t serial = 0;  ///< the how-manieth window of its engine this is; set when it is opened

 private:
  std::uint64_t size_bytes_;
};

/// Comes back with a transfer's completion.
using Ticket = std::uint64_t;

struct PutRequest {
  RemoteWindow* window;
  int peer;
  int channel;
  std::uint64_t offset;
  const std::byte* source;
  std::size_t bytes;
  Ticket ticket;
};

struct PostRequest {
  RemoteWindow* window;
  int peer;
  int channel;
  std::uint64_t offset;
  std::uint64_t total;
  Ticket ticket;
};

enum class Start : std::uint8_t {
  kBusy,     ///< not taken, ask again in a later pass (this peer's queue is full)
  kStarted,  ///< taken; its ticket comes out of progress()
  kDone,     ///< finished; its ticket does not come out of progress()
};

/// A put is complete when its bytes are visible at the peer, as far as !ordered posts must rely on that, and its
/// source may be reused. Every started transfer completes at some time, with `failure` set if it could not be carried
/// out.
struct Completion {
  Ticket ticket;
  std::string failure;
};

/// describe(), attach() and abandon() come from any thread, one at a time; all else from the proxy's thread. Offsets and sizes
/// were checked. An exception from start_*() fails the lane (channel, peer); one from progress() ends the proxy.
class Carrier {
 public:
  virtual ~Carrier() = default;  ///< drops what is unfinished; afterwards no user memory is touched
  virtual const Provider& provider() const = 0;
  virtual std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) = 0;
  virtual std::unique_ptr<RemoteWindow> attach(int peer, std::span<const std::byte> description,
                                               std::shared_ptr<Memory> memory) = 0;
  /// Ends what is on its way to a peer through windows up to this serial, which are all that were attached for it: transfers that
  /// have not completed come out of progress() as failures, and none of their sources is read after that. Who never leaves a
  /// transfer open need do nothing.
  virtual void abandon(int peer, std::uint64_t last_serial) {
    static_cast<void>(peer);
    static_cast<void>(last_serial);
  }
  /// Any thread: see Engine.
  virtual void acknowledge_posts() {}
  /// Larger puts are handed over in pieces.
  virtual std::size_t max_put_bytes() const = 0;
  virtual Start start_put(const PutRequest& request) = 0;
  /// Unless provider().ordered, this comes only when all earlier puts and posts of the (channel, peer) are complete.
  virtual Start start_post(const PostRequest& request) = 0;
  /// Called once a pass. True: something moved.
  virtual bool progress(std::vector<Completion>& completions) = 0;
  /// Before the proxy sleeps: adds descriptors that become ready when progress() has something to do. False: there is something
  /// now, or this provider has no such descriptors; the proxy then only naps.
  virtual bool prepare_sleep(std::vector<pollfd>& watched) {
    static_cast<void>(watched);
    return false;
  }
  /// True: what is on its way will be complete within microseconds; no nap until then.
  virtual bool finishes_soon() const { return false; }
  /// True: progress() must go on while this rank has nothing to send (a target that needs driving); no deep sleep then.
  virtual bool must_be_driven() const { return false; }
};

}  // namespace ferry::net
