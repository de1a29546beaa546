// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Says on the terminal how far long work has come; into a file or a pipe only a line now and then.
#pragma once

#include <chrono>
#include <string>

namespace ferry::app {

class Progress {
 public:
  Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  void show(const std::string& text);
  /// Takes the line away, before something else is printed.
  void clear();

 private:
  bool terminal_;
  bool visible_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace ferry::app
