#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Nodes of a network on one machine: every node is a network namespace, all of them hang on a bridge, and nothing but TCP
# leads from one to another. Needs root (or the capabilities NET_ADMIN and SYS_ADMIN). Takes down what it has set up.
#
#   tools/netns.sh test             the demo over 2x2, 4x1, 3x2 and 2+1: the bits of one process; a link cut and restored, and
#                                   cut for good
#   tools/netns.sh bench [FILE]     Ferry and MPI over TCP in the same namespaces, in turn; lines of results go to FILE
#   tools/netns.sh run N CMD...     CMD with N namespaces up; $NETNS is their names, with commas
#
# FERRY (build/host/bin/ferry), MPI (build/host/bin/ferry_mpi_baseline) and ROUNDS (3) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

ferry=${FERRY:-build/host/bin/ferry}
prefix="ferry$$-"
hub="${prefix}hub"

names() { # N
  local list=()
  for ((node = 0; node < $1; ++node)); do list+=("$prefix$node"); done
  (IFS=, && echo "${list[*]}")
}

up() { # N
  ip netns add "$hub"
  ip -n "$hub" link add bridge0 type bridge
  ip -n "$hub" link set bridge0 up
  for ((node = 0; node < $1; ++node)); do
    ip netns add "$prefix$node"
    ip link add eth0 netns "$prefix$node" type veth peer name "port$node" netns "$hub"
    ip -n "$hub" link set "port$node" master bridge0 up
    ip -n "$prefix$node" addr add "10.83.0.$((node + 1))/24" dev eth0
    ip -n "$prefix$node" link set eth0 up
    ip -n "$prefix$node" link set lo up
  done
}

down() {
  local name
  for name in $(ip netns list | awk '{print $1}'); do
    case "$name" in "$prefix"*) ip netns del "$name" ;; esac
  done
}

run_demo() { # ranks nodes
  up "$2"
  echo "== $1 ranks, $2 nodes"
  "$ferry" demo --ranks "$1" --nodes "$2" --network tcp --netns "$(names "$2")" --tokens 64 --hidden 128 --experts 24 |
    tee "$log" | tail -1
  [ "$(tail -1 "$log")" = verified ] || { cat "$log" && exit 1; }
  down
}

# Calls go on while node 1 is unreachable for some seconds, or for good: they end right, or with the step and the ranks named.
run_cut() { # seconds, or "forever"
  local deadline=30
  [ "$1" = forever ] && deadline=3
  up 2
  echo "== 4 ranks, 2 nodes, link cut: $1"
  "$ferry" bench --ranks 4 --nodes 2 --network tcp --netns "$(names 2)" --tokens 64 --hidden 256 --experts 16 \
    --iterations 1500 --deadline "$deadline" >"$log" 2>&1 &
  local bench=$! status=0 begin=$SECONDS
  sleep 3
  kill -0 $bench 2>/dev/null || { echo "netns: the calls were over before the link was cut" && cat "$log" && exit 1; }
  ip -n "$hub" link set port1 down
  if [ "$1" != forever ]; then
    sleep "$1"
    ip -n "$hub" link set port1 up
  fi
  wait $bench || status=$?
  echo "   $(tail -1 "$log" | cut -c1-300) ($((SECONDS - begin)) s)"
  if [ "$1" = forever ]; then
    [ $status = 1 ] && grep -q 'waits for rank' "$log" && [ $((SECONDS - begin)) -lt 20 ] || exit 1
  else
    [ "$(tail -1 "$log")" = verified ] || { cat "$log" && exit 1; }
  fi
  down
}

# ctest and CI count 77 as skipped, not as passed.
if ! command -v ip >/dev/null || ! ip netns add "$hub" 2>/dev/null; then
  echo "netns: SKIPPED, nothing was run: network namespaces need the program ip (Debian: iproute2) and root" >&2
  exit 77
fi
ip netns del "$hub"
log=$(mktemp)
trap 'down; rm -f "$log"' EXIT

case "${1:-}" in
  test)
    run_demo 4 2
    run_demo 4 4
    run_demo 6 3
    run_demo 3 2
    run_cut 2
    run_cut forever
    ;;
  bench)
    up 2
    python3 benchmarks/compare.py --ferry "$ferry" --mpi "${MPI:-build/host/bin/ferry_mpi_baseline}" \
      --netns "$(names 2)" --rounds "${ROUNDS:-3}" ${2:+--json "$2"}
    ;;
  run)
    up "$2"
    NETNS=$(names "$2")
    export NETNS
    "${@:3}"
    ;;
  *)
    sed -n '5,16p' "$0" >&2
    exit 2
    ;;
esac
