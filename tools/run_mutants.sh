#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs the programs that tools/mutate_fences.py --mutants DIR has built, on a machine with GPUs:
# tools/run_mutants.sh DIR [REGEX [SECONDS]]
# Each has one fence, wait or credit taken out and should be noticed by its test ("killed"), unless the list gives the reason why
# none can notice. The programs without a mutation come first: if one of them fails, the others say nothing.
# Status 1 if anything is not as the list expects, or if nothing was run. REGEX chooses by name. None is begun after SECONDS; those
# left out are counted.
set -uo pipefail

folder=${1:?which folder}
only=${2:-.}
last=$((SECONDS + ${3:-86400}))
[ -f "$folder/list.tsv" ] || { echo "mutants: $folder/list.tsv is missing; build with tools/mutate_fences.py --mutants" >&2; exit 2; }

# attempt FILE PATTERN SECONDS: a gtest filter, or the arguments of a program that is no suite of gtest's. What waits in a mutant
# may wait for ever.
attempt() {
  local arguments
  case "$1" in
    *_tests) arguments=(--gtest_fail_fast --gtest_filter="$2") ;;
    *) read -ra arguments <<<"$2" ;;
  esac
  FERRY_TEST_BACKEND=cuda CUDA_DEVICE_MAX_CONNECTIONS=32 timeout -k 2 "$3" "$folder/$1" "${arguments[@]}" >"$folder/log" 2>&1
  local code=$?
  if [[ $1 == *_tests ]] && ! grep -q '^\[       OK \|^\[  FAILED  \]' "$folder/log" && [ $code = 0 ]; then
    echo "mutants: $1 ran no test of $2" >&2
    exit 2
  fi
  if grep -q '^[a-z]*: skipped' "$folder/log"; then
    echo "mutants: $1 says '$(head -1 "$folder/log")'" >&2
    exit 2
  fi
  return $code
}

unexpected=0 total=0 killed=0 left_out=0
while IFS=$'\t' read -r file pattern expect seconds name; do
  [[ $expect = passes || $name =~ $only ]] || continue
  if [ $SECONDS -ge $last ]; then
    [ "$expect" = passes ] || left_out=$((left_out + 1))
    continue
  fi
  tries=1
  [ "$expect" = caught ] && tries=3 # what depends on how ranks meet may need more than one
  seen=survived
  for ((i = 0; i < tries; ++i)); do
    attempt "$file" "$pattern" "$seconds" && continue
    seen=killed
    break
  done
  where=$([ $seen = killed ] && grep -m1 -o '^\[  FAILED  \] [^ ,]*' "$folder/log" | cut -c14-)
  if [ "$expect" = passes ]; then
    [ $seen = survived ] && continue
    echo "mutants: $file fails without a mutation: $where" >&2
    tail -20 "$folder/log" >&2
    exit 2
  fi
  total=$((total + 1))
  [ $seen = killed ] && killed=$((killed + 1))
  mark=ok
  if [ "$seen/$expect" = survived/caught ] || [ "$seen/$expect" = killed/not-caught ]; then
    mark=BAD
    unexpected=$((unexpected + 1))
  fi
  echo "mutants: $mark $seen  $name  [${where:-$expect expected}]"
done <"$folder/list.tsv"
echo "mutants: $total, $killed killed, $unexpected not as expected, $left_out left out for want of time"
[ $unexpected = 0 ] && [ $total -gt 0 ]
