#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# All style checks: tools/lint.sh [--no-tidy]. Runs them all, even if one fails, and fails if any failed.
# Needs ruff on the PATH (`make lint` sees to that) and, for clang-tidy, a configured build/host.
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
failed=()

check() {
  local name=$1
  shift
  echo "lint: $name"
  "$@" || failed+=("$name")
}

format_cxx() { tools/our_files.sh cxx | xargs -r clang-format --dry-run -Werror; }
format_python() { tools/our_files.sh python | xargs -r ruff format --check --quiet --diff; }
lint_python() { tools/our_files.sh python | xargs -r ruff check --quiet; }
# Tests are held to the format only: their macros set off the checks.
tidy() {
  tools/our_files.sh cxx | grep -E '^(src|apps)/.*\.cc$' | grep -Ev '/(no_)?cuda/' |
    xargs -r -P "$jobs" -n 1 clang-tidy -p build/host --quiet --extra-arg=-Wno-unknown-warning-option 2>/dev/null
}

check "clang-format (make format mends it)" format_cxx
check "ruff format (make format mends it)" format_python
check "ruff check" lint_python
check "layers" tools/check_layers.py
check "sizes" tools/check_sizes.py
check "rules" tools/check_rules.py
check "fences" tools/mutate_fences.py --check
check "kernels" tools/kernel_report.py --check
if [ "${1:-}" != --no-tidy ]; then
  cmake --preset host --log-level=WARNING >/dev/null || exit 1
  check "clang-tidy" tidy
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'lint: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "lint: clean"
