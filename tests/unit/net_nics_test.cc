// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Choosing network cards, on PCIe trees made of folders and links as sysfs has them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "ferry/error.h"
#include "net/nics.h"

namespace ferry::net {
namespace {

namespace fs = std::filesystem;

/// Two switches under one root, and another root: gpu0 nic0 nic1 | gpu1 nic2 || nic3.
class NetNics : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("ferry_pci_" + std::to_string(::getpid()));
    devices_ = root_ / "bus";
    fs::create_directories(devices_);
    add("pci0000:00/0000:00:01.0/0000:01:00.0", "gpu0");
    add("pci0000:00/0000:00:01.0/0000:01:00.1", "nic0");
    add("pci0000:00/0000:00:01.0/0000:01:00.2", "nic1");
    add("pci0000:00/0000:00:02.0/0000:02:00.0", "gpu1");
    add("pci0000:00/0000:00:02.0/0000:02:00.1", "nic2");
    add("pci0000:80/0000:80:01.0/0000:81:00.0", "nic3");
  }
  void TearDown() override { fs::remove_all(root_); }

  std::vector<std::string> chosen(const EngineConfig& config) const {
    std::vector<Nic> nics;
    for (const char* name : {"nic3", "nic2", "nic0", "nic1"}) nics.push_back({name, name, false});
    std::vector<std::string> names;
    for (const int index : choose_nics(config, nics, devices_))
      names.push_back(nics[static_cast<std::size_t>(index)].name);
    return names;
  }
  std::string refusal(const EngineConfig& config) const {
    try {
      static_cast<void>(chosen(config));
    } catch (const Error& error) {
      return error.what();
    }
    return "chosen";
  }

  fs::path devices_;

 private:
  void add(const std::string& path, const std::string& name) {
    fs::create_directories(root_ / path);
    fs::create_directory_symlink(root_ / path, devices_ / name);
  }
  fs::path root_;
};

using Names = std::vector<std::string>;

TEST_F(NetNics, DistancesAreThoseOfTheTree) {
  EXPECT_EQ(pci_distance(devices_, "gpu0", "gpu0"), 0);
  EXPECT_EQ(pci_distance(devices_, "gpu0", "nic0"), 2);
  EXPECT_EQ(pci_distance(devices_, "gpu0", "nic2"), 4);
  EXPECT_EQ(pci_distance(devices_, "gpu0", "nic3"), 6);
  EXPECT_EQ(pci_distance(devices_, "gpu0", "nobody"), std::nullopt);
}

TEST_F(NetNics, TheNearestAreTakenAndRanksSpreadOverEquals) {
  EXPECT_EQ(chosen({.near_pci = "gpu0"}), (Names{"nic0"}));
  EXPECT_EQ(chosen({.rank = 1, .near_pci = "gpu0"}), (Names{"nic1"}));
  EXPECT_EQ(chosen({.rank = 3, .num_nics = 2, .near_pci = "gpu0"}), (Names{"nic1", "nic0"}));
  EXPECT_EQ(chosen({.num_nics = 3, .near_pci = "gpu0"}), (Names{"nic0", "nic1", "nic2"}));
  EXPECT_EQ(chosen({.rank = 5, .near_pci = "gpu1"}), (Names{"nic2"}));
  EXPECT_EQ(chosen({}), (Names{"nic3"})) << "without a device the provider's order decides";
}

TEST_F(NetNics, NamesAreTakenAsTheyAre) {
  EXPECT_EQ(chosen({.nics = {"nic2", "nic0"}, .near_pci = "gpu0"}), (Names{"nic2", "nic0"}));
  EXPECT_NE(refusal({.nics = {"nic7"}}).find("nic3, nic2, nic0, nic1"), std::string::npos);
  EXPECT_NE(refusal({.nics = {"nic0", "nic0"}}).find("twice"), std::string::npos);
}

TEST_F(NetNics, WhatIsNotThereIsSaid) {
  EXPECT_NE(refusal({.near_pci = "gpu9"}).find("gpu9"), std::string::npos);
  EXPECT_NE(refusal({.num_nics = 5}).find("num_nics is 5"), std::string::npos);
  EXPECT_NE(refusal({.num_nics = 0}).find("num_nics"), std::string::npos);
}

TEST_F(NetNics, TheLoopbackInterfaceIsForOneMachine) {
  const std::vector<Nic> nics{{"eth0", "", false}, {"lo", "", true}};
  EXPECT_EQ(choose_nics({.same_machine = true}, nics, devices_), (std::vector{1}));
  EXPECT_EQ(choose_nics({.same_machine = false}, nics, devices_), (std::vector{0}));
  EXPECT_EQ(choose_nics({.nics = {"lo"}, .same_machine = false}, nics, devices_), (std::vector{1}));
  EXPECT_EQ(choose_nics({.same_machine = true}, {{"eth0", "", false}}, devices_), (std::vector{0}));
}

}  // namespace
}  // namespace ferry::net
