#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Unpacks the libraries that the command line and the tests are compiled against into .bundle/, a folder git ignores. It travels
# with the checkout to a GPU machine without a network, where tools/gpu.sh builds with it. Needs apt and its network, no root.
set -euo pipefail
cd "$(dirname "$0")/.."

# Headers, CMake packages, and GoogleTest's sources: its Debian libraries would tie the tests to Debian's compiler.
packages=(libfmt-dev libcli11-dev nlohmann-json3-dev googletest)

for tool in apt-get apt-cache dpkg-deb; do
  command -v "$tool" >/dev/null || { echo "bundle: '$tool' is missing; run this on a Debian machine and take .bundle/ along" >&2; exit 1; }
done
# The CMake package of fmt names its shared library, though nothing of ours is linked to it.
packages+=("$(apt-cache depends libfmt-dev | sed -n 's/.*Depends: \(libfmt[0-9]\+\).*/\1/p' | head -1)")
downloads=$(mktemp -d)
trap 'rm -rf "$downloads"' EXIT
(cd "$downloads" && apt-get download -q "${packages[@]}") ||
  { echo "bundle: the download failed; 'apt-get update' (as root) renews the lists of packages" >&2; exit 1; }
rm -rf .bundle
mkdir .bundle
for package in "$downloads"/*.deb; do dpkg-deb -x "$package" .bundle; done
rm -rf .bundle/usr/share/doc .bundle/usr/src/googletest/*/test .bundle/usr/src/googletest/*/samples
echo "bundle: $(du -sh .bundle | cut -f1) in .bundle/"
