#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds the wheels, one for Python 3.11 and one with the stable ABI for 3.12 and later, and installs each into a clean environment,
# where it must run the examples. The wheel of 3.12 is also
# installed for every later Python at hand.
#
#   tools/check_wheels.sh [python...]     pythons: 3.11 and newer ones; default: those on the PATH and those of pyenv
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=build/wheel-check
rm -rf "$work"
mkdir -p "$work"

find_pythons() {
  local minor candidate
  for minor in 11 12 13 14; do
    for candidate in "$(command -v "python3.$minor" || true)" "$HOME"/.pyenv/versions/3."$minor".*/bin/python3."$minor"; do
      if [ -x "$candidate" ] && "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
        echo "$candidate"
        break
      fi
    done
  done
}

# build PYTHON NAME: a wheel in $work/dist
build() {
  local python=$1 name=$2
  "$python" -m venv "$work/build-$name"
  "$work/build-$name/bin/python" -m pip install --quiet --disable-pip-version-check nanobind==3.1.0 scikit_build_core==1.1.2
  PATH="$PWD/$work/build-$name/bin:$PATH" "$work/build-$name/bin/python" -m pip wheel --quiet --no-build-isolation --no-deps \
    --wheel-dir "$work/dist" --config-settings=build-dir="$work/cmake-$name" --config-settings=cmake.build-type=RelWithDebInfo \
    --config-settings=cmake.define.FERRY_CUDA="${FERRY_CUDA:-AUTO}" .
}

# try PYTHON WHEEL NAME: in a clean environment, from another folder
try() {
  local python=$1 wheel=$2 name=$3
  "$python" -m venv "$work/clean-$name"
  "$work/clean-$name/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
  (
    cd "$work/clean-$name"
    bin/python "$root/examples/10_numpy_moe.py" >/dev/null
    bin/python -m ferry.launch --ranks 2 "$root/examples/11_launch.py" >/dev/null
    bin/python -c "import ferry, sys; assert 'torch' not in sys.modules and ferry.capabilities()"
  )
  if ldd "$work/clean-$name"/lib/python3.*/site-packages/ferry/_ferry*.so | grep -E 'libtorch|libcuda\.|libcudart|libpython'; then
    echo "wheels: the module of $wheel links what it must not" >&2
    exit 1
  fi
  echo "wheels: $(basename "$wheel") runs with $("$python" --version)"
}

pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || mapfile -t pythons < <(find_pythons)
checked=0
stable=""
for python in "${pythons[@]}"; do
  version=$("$python" -c 'import sys; print("%d%02d" % sys.version_info[:2])')
  if [ "$version" -lt 312 ] || [ -z "$stable" ]; then
    before=$(ls "$work/dist" 2>/dev/null || true)
    build "$python" "$version"
    wheel=$work/dist/$(comm -13 <(echo "$before") <(ls "$work/dist") | tail -1)
    tag=cp$version-cp$version
    [ "$version" -lt 312 ] || tag=cp312-abi3
    if [[ $wheel != *"$tag"* ]]; then
      echo "wheels: Python $version made $wheel, expected the tag $tag" >&2
      exit 1
    fi
    [ "$version" -lt 312 ] || stable=$wheel
  else
    wheel=$stable
  fi
  try "$python" "$wheel" "$version"
  checked=$((checked + 1))
done
[ -n "$stable" ] || echo "wheels: no Python 3.12 or later here, the wheel with the stable ABI was not made"
echo "wheels: $checked installations checked"
[ "$checked" -gt 0 ]
