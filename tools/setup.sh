#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes sure that the Debian packages for a job are there: tools/setup.sh demo|test|ci. Installs what is missing if it may,
# otherwise prints the exact line to run and fails. Quick when nothing is missing.
set -euo pipefail

job=${1:-}
case "$job" in
  demo | test | ci) ;;
  *)
    echo "usage: tools/setup.sh demo|test|ci (seen: '$job')" >&2
    exit 2
    ;;
esac
# shellcheck source=tools/packages.sh
. "$(dirname "$0")/packages.sh"
list="packages_$job"
read -r -a wanted <<<"${!list}"

# Without dpkg this is another system: look for the tools themselves and let the configure step check the libraries.
if ! command -v dpkg-query >/dev/null; then
  for tool in c++ cmake ninja; do
    if ! command -v "$tool" >/dev/null; then
      echo "setup: '$tool' is missing and this is not a Debian system; please install what corresponds to: ${wanted[*]}" >&2
      exit 1
    fi
  done
  exit 0
fi

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "setup: packages are missing and only root may install them. Please run:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

echo "setup: installing ${missing[*]}"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}")
# The package lists may be old or absent; ask for new ones only then.
"${install[@]}" || { "${as_root[@]}" apt-get update -q && "${install[@]}"; }
