#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Lists our source files, those git knows and new ones it does not ignore: tools/our_files.sh cxx|python.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  cxx) patterns=('*.h' '*.cc' '*.cu' '*.cuh') ;;
  python) patterns=('*.py') ;;
  *)
    echo "usage: tools/our_files.sh cxx|python" >&2
    exit 2
    ;;
esac
# A file that is deleted but still in the index is no file.
git ls-files --cached --others --exclude-standard -- "${patterns[@]}" | sort -u | while read -r file; do
  [ ! -f "$file" ] || echo "$file"
done
