// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which network cards a rank uses: by name, or by the distance on the PCIe tree.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "net/engine.h"

namespace ferry::net {

struct Nic {
  std::string name;          ///< as the provider calls it
  std::string pci;           ///< "0000:3b:00.0"; empty if it is no PCIe device
  bool is_loopback = false;  ///< an interface that reaches this machine only
};

/// Edges between two PCIe devices (or between a device and the root, where they share nothing) by their paths in sysfs; empty if
/// one of them is not there. `devices`: where sysfs lists them, "/sys/bus/pci/devices".
std::optional<int> pci_distance(const std::string& devices, const std::string& one, const std::string& other);

/// Indices into `found`, in the order of use. By name: exactly those, each must be there. Else the `num_nics` nearest to
/// `near_pci`; among equally near ones a rank begins with number (rank mod their count), so that the ranks of a machine spread.
/// Interfaces that reach this machine only are taken when all ranks are on it, and never otherwise. Throws
/// Error(invalid_argument | unsupported) that lists what there is.
std::vector<int> choose_nics(const EngineConfig& config, const std::vector<Nic>& found,
                             const std::string& devices = "/sys/bus/pci/devices");

}  // namespace ferry::net
