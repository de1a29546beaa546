#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Everything that needs a GPU, in one command and without a network: tools/gpu.sh [build] [test] [...]
#   build     the command line, the tests and the benchmark, in build/gpu
#   test      the conformance suite on all GPUs, ranks as threads and (fewer cases, time-sliced) as processes
#   graphs    captured and replayed calls, streams, lifetimes of results, peers that run ahead
#   nodes     cases and graphs of several nodes, ranks as threads; on two GPUs or more also what they cost, with a link of 50 GB/s
#   faults    the fault suite: late ranks, mismatches, bad ids, overflows, abort, new groups afterwards
#   litmus    the order of rows and signals between two GPUs, with all fences and without
#   soak      very many random calls, every one compared (FERRY_SOAK_CALLS, 100000)
#   mutants   programs with a fence, wait or credit taken out, made beside the build; mutants=REGEX chooses by name or file (a dot for
#             a space), FERRY_MUTANTS_SECONDS bounds the time they run (240)
#   python    the Python module for the python3 at hand, in build/gpu/python, and its tests with PyTorch's tensors
#   torch     the same module with ferry.torch and deep_ep over it: their tests, with a GPU for each rank, and their examples
#   ptx       the conformance suite, as threads, from code that a driver compiles for the GPU at hand from compute_80
#   sanitize  compute-sanitizer's memcheck and racecheck over a few cases of one rank, memcheck over two ranks as processes
#   measure   benchmarks/results/<date>-<machine>.jsonl
#   latency   the part of measure that is about latency mode: whole calls, direct and replayed, and hooks
#   examples  two-batch overlap, a rank on each GPU; its timeline lies in build/gpu/<machine>-two-batch-overlap.json
# Without words: build test measure. CXX and CUDAHOSTCXX name the compiler, FERRY_COMMIT the commit where there is no git.
# Libraries come from the system or from .bundle/, which `make bundle` fills on a machine with a network.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

out=build/gpu
failed=()
export PATH=$PATH:/usr/local/cuda/bin

say() { echo "gpu: $*"; }
give_up() {
  [ ${#failed[@]} = 0 ] || printf 'gpu: failed: %s\n' "${failed[@]}" >&2
  echo "gpu: $*" >&2
  exit 1
}

need_tools() {
  local tool
  for tool in "$@"; do command -v "$tool" >/dev/null || give_up "'$tool' is missing"; done
}

# Where CMake finds GoogleTest, fmt, CLI11 and nlohmann_json: the bundle first, then the system.
prefix() {
  [ -d .bundle/usr ] || return 0
  if [ ! -f "$out/gtest/lib/cmake/GTest/GTestConfig.cmake" ]; then
    { cmake -S .bundle/usr/src/googletest -B "$out/gtest-build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_LIBDIR=lib \
        -DCMAKE_INSTALL_PREFIX="$PWD/$out/gtest" -DCMAKE_POLICY_VERSION_MINIMUM=3.5 &&
      cmake --build "$out/gtest-build" --parallel "$(nproc)" --target install; } >"$out/gtest.log" 2>&1 ||
      { tail -20 "$out/gtest.log" >&2; give_up "GoogleTest from .bundle/ did not build"; }
  fi
  echo "$PWD/.bundle/usr;$PWD/$out/gtest"
}

# compile FOLDER ARCHITECTURES targets...; cmake_options are for the configure step
cmake_options=()
compile() {
  local folder=$1 architectures=$2 generator=()
  shift 2
  mkdir -p "$out"
  local where
  where=$(prefix) || exit 1
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S . -B "$folder" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DFERRY_CUDA=ON -DFERRY_TESTS=ON -DFERRY_EXAMPLES=OFF \
    -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DFERRY_CUDA_ARCHITECTURES="$architectures" -DCMAKE_PREFIX_PATH="$where" "${cmake_options[@]}" --log-level=WARNING >"$folder.log" 2>&1 ||
    { tail -20 "$folder.log" >&2; give_up "configuring failed; if a package is missing: make bundle, and take .bundle/ along"; }
  cmake --build "$folder" --parallel "$(nproc)" --target "$@" >"$folder.log" 2>&1 || { tail -30 "$folder.log" >&2; give_up "building failed"; }
}

step_build() {
  local cmake_options=(-DFERRY_EXAMPLES=ON)
  need_tools cmake nvcc "${CXX:-c++}"
  compile "$out" "${FERRY_CUDA_ARCHITECTURES:-90}" ferry_cli ferry_cuda_throughput ferry_cuda_latency ferry_cuda_hooks conformance_tests cuda_tests fault_tests \
    ferry_soak ferry_litmus example_05_two_batch_overlap_cuda
  say "built $out"
}

need_gpu() {
  need_tools nvidia-smi
  [[ $(nvidia-smi --list-gpus) == *GPU* ]] || give_up "no GPU"
}

# conformance all|LEAST NAME FOLDER SECONDS filter [environment...]: none may fail, and all, or at least so many, pass in time.
conformance() { cases conformance "$@"; }

# cases SUITE all|LEAST NAME FOLDER SECONDS filter [environment...]
cases() {
  local suite=$1 wanted=$2 name=$3 folder=$4 seconds=$5 filter=$6 log=$out/$1-$3.log
  shift 6
  # Kernels of several ranks on one GPU wait for each other, so each needs a hardware queue of its own.
  env FERRY_TEST_BACKEND=cuda CUDA_DEVICE_MAX_CONNECTIONS=32 "$@" \
    timeout "$seconds" "$folder/tests/${suite}_tests" --gtest_filter="$filter" >"$log" 2>&1
  local code=$? passed bad
  passed=$(grep -c '^\[       OK ' "$log")
  bad=$(grep -c '^\[  FAILED  \].*ms)$' "$log")
  say "$suite, $name: $passed passed, $bad failed, exit code $code$([ $code = 124 ] && echo ' (out of time)')"
  grep -A4 Failure "$log" | cut -c1-300 | head -20
  if [ "$wanted" = all ]; then
    [ $code = 0 ] && [ "$passed" != 0 ]
  else
    { [ $code = 0 ] || [ $code = 124 ]; } && [ "$bad" = 0 ] && [ "$passed" -ge "$wanted" ]
  fi || failed+=("$suite, $name")
}

step_test() {
  need_gpu
  timeout 60 "$out/tests/cuda_tests" --gtest_brief=1 || failed+=("cuda_tests")
  conformance all threads "$out" 240 '*Chosen*:Seeds*:Refusals.MoreChoicesThanGpusTake:*AutoMode*'
  conformance 10 processes "$out" 120 'Topologies/*:Codecs/*' FERRY_TEST_PROCESSES=1
}

step_graphs() {
  need_gpu
  conformance all graphs "$out" 60 'Setups/Graphs*'
  conformance all streams "$out" 30 'Layouts/Streams*'
  conformance all lifetimes "$out" 60 'Setups/Ahead*:Setups/Lifetimes*'
}

step_nodes() {
  need_gpu
  timeout 60 "$out/tests/cuda_tests" --gtest_brief=1 || failed+=("cuda_tests")
  conformance all nodes "$out" 240 'ManyTokensAcross/*:Topologies/*/?p*:Reductions/*/?p*'
  conformance all nodes-graphs "$out" 60 'Setups/Graphs*nodes*'
  local gpus
  gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
  [ "$gpus" -gt 1 ] || return 0
  for link in 50 0; do
    timeout 120 "$out/bin/ferry_cuda_throughput" --ranks 2 --nodes 2 --link-gbps $link \
      --ops dispatch-bf16,dispatch-fp8,combine-node,combine-window || failed+=("nodes, link of $link GB/s")
  done
}

step_faults() {
  need_gpu
  cases fault all threads "$out" 120 '*'
}

# program NAME SECONDS arguments...: a program that says in its last line how it went.
program() {
  local name=$1 seconds=$2 log=$out/$1.log
  shift 2
  CUDA_DEVICE_MAX_CONNECTIONS=32 timeout "$seconds" "$out/tests/ferry_$name" "$@" >"$log" 2>&1
  local code=$?
  sed 's/^/gpu: /' "$log" | tail -20
  [ $code = 0 ] || failed+=("$name (exit code $code)")
}

step_litmus() {
  need_gpu
  program litmus 60
}

step_soak() {
  need_gpu
  program soak 280 --calls "${FERRY_SOAK_CALLS:-100000}"
}

# step_mutants [REGEX]
step_mutants() {
  need_tools cmake nvcc python3 strip
  need_gpu
  [ -f "$out/compile_commands.json" ] || give_up "$out is missing: tools/gpu.sh build mutants"
  if ! python3 tools/mutate_fences.py --mutants "$out/mutants" --build "$out" --jobs "$(nproc)" --only "${1:-}" >"$out/mutants.log" 2>&1; then
    tail -5 "$out/mutants.log" >&2
    failed+=("building mutants")
    return
  fi
  say "mutants: $(grep -c '^built' "$out/mutants.log") built"
  bash tools/run_mutants.sh "$out/mutants" . "${FERRY_MUTANTS_SECONDS:-240}" || failed+=("mutants")
}

# The Python package for the python3 at hand, in $out/python.
build_python() {
  need_tools cmake nvcc python3 "${CXX:-c++}"
  need_gpu
  local needed="nanobind numpy ml_dtypes torch pytest pytest_timeout" name
  for name in $needed; do
    python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$name') is None)" || give_up "$(command -v python3) has no $name; needed: $needed"
  done
  local cmake_options=(-DFERRY_PYTHON=ON "-Dnanobind_DIR=$(python3 -m nanobind --cmake_dir)"
    "-DPython_EXECUTABLE=$(python3 -c 'import sys; print(sys.executable)')")
  compile "$out/python-build" "${FERRY_CUDA_ARCHITECTURES:-90}" all
  cmake --install "$out/python-build" --prefix "$out/python" >/dev/null || give_up "installing the Python package failed"
}

step_python() {
  local log=$out/python.log
  build_python
  PYTHONPATH=$PWD/$out/python timeout 400 python3 -m pytest tests/python/test_cuda.py tests/python/test_gpu_arrays.py \
    tests/python/test_arrays.py >"$log" 2>&1
  local code=$?
  say "python: exit code $code, $(tail -1 "$log")"
  grep '^\(FAILED\|ERROR\|SKIPPED\|E  \)' "$log" | cut -c1-300 | head -40
  # Where all of them are skipped, nothing was tested.
  [ $code = 0 ] && ! grep -q '^SKIPPED.*test_cuda.py:[0-9]*: \(could not import\|backend cuda\|this PyTorch\)' "$log" || failed+=("python; see $log")
}

step_torch() {
  local log=$out/torch.log gpus
  build_python
  gpus=$(nvidia-smi --list-gpus | grep -c GPU)
  # Tests that need more GPUs than there are say so.
  PYTHONPATH=$PWD/$out/python:$PWD/python/deep_ep timeout 560 python3 -m pytest tests/torch --durations=5 >"$log" 2>&1
  local code=$?
  say "torch, $gpus GPUs: exit code $code, $(tail -1 "$log")"
  grep '^\(FAILED\|ERROR\|SKIPPED\|E  \)' "$log" | cut -c1-300 | head -60
  # Where none of them saw a GPU, nothing was tested.
  [ $code = 0 ] && ! grep -q '^SKIPPED.*\(backend cuda:\|finds no GPU\)' "$log" || failed+=("torch; see $log")
}

step_ptx() {
  need_tools cmake nvcc "${CXX:-c++}"
  need_gpu
  compile "$out/ptx" 80-virtual conformance_tests
  # The driver compiles when the kernels are loaded, so the first case takes long.
  conformance all ptx "$out/ptx" 300 '*Chosen*:Seeds*'
}

step_sanitize() {
  need_gpu
  need_tools compute-sanitizer
  local tool log
  for tool in memcheck racecheck; do
    log=$out/$tool.log
    FERRY_TEST_BACKEND=cuda timeout 200 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$out/tests/conformance_tests" --gtest_filter='Topologies/*/1_throughput_*' >"$log" 2>&1
    local code=$? cases
    cases=$(grep -c '^\[       OK ' "$log")
    say "$tool: exit code $code, $cases cases, $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" || echo 'no summary')"
    [ $code = 0 ] && [ "$cases" != 0 ] || failed+=("$tool")
  done
  # The tool lets one kernel of a process run at a time, so ranks that wait for each other are processes.
  log=$out/memcheck-processes.log
  FERRY_TEST_BACKEND=cuda FERRY_TEST_PROCESSES=1 timeout 200 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 9 \
    "$out/tests/conformance_tests" --gtest_filter='Topologies/*/2_throughput_*' >"$log" 2>&1
  code=$?
  cases=$(grep -c '^\[       OK ' "$log")
  say "memcheck, processes: exit code $code, $cases cases, $(grep -c '========= Invalid' "$log") invalid accesses"
  [ $code = 0 ] && [ "$cases" != 0 ] && ! grep -q '========= Invalid' "$log" || failed+=("memcheck, processes")
}

commit_here() { echo "${FERRY_COMMIT:-$(git describe --always --dirty --abbrev=12 --match '' 2>/dev/null || echo unknown)}"; }

# The arguments that every measurement of this run has; its lines go to $out/results.jsonl.
begin_measuring() {
  need_gpu
  lines=$out/results.jsonl
  rm -f "$lines"
  arguments=(--json "$lines" --commit "$(commit_here)" --date "$(date -u +%Y-%m-%dT%H:%M:%SZ)")
}
bench() { timeout 300 "$out/bin/ferry_cuda_$1" "${arguments[@]}" "${@:2}"; }

# Latency mode: one rank on each GPU. Percentiles are of ten thousand calls.
bench_latency() {
  local tokens=1,8,32,128,256
  local calls=(--tokens "$tokens" --iterations 10000)
  bench latency "${calls[@]}" && bench latency "${calls[@]}" --launch graph && bench hooks --tokens "$tokens"
}

keep_lines() {
  local machine file
  machine=$(sed -n '1s/.*"machine":"\([^"]*\)".*/\1/p' "$lines")
  file=benchmarks/results/$(date -u +%Y-%m-%d)-$machine.jsonl
  cat "$lines" >>"$file"
  say "$(wc -l <"$lines") lines added to $file; benchmarks/figures.py puts them into the README"
}

step_measure() {
  local few=dispatch-bf16,dispatch-fp8,combine-window
  begin_measuring
  if bench throughput --tokens 4096 --sms 16,8,12,24 && bench throughput --tokens 128,1024,8192 --sms 16 &&
    bench throughput --tokens 4096 --sms 16 --launch graph --ops "$few,dispatch-expert,combine-any" &&
    bench throughput --tokens 4096 --sms 16 --routing zipf --ops "$few" &&
    bench throughput --tokens 4096 --sms 16 --experts 2 --top-k 1 --ops "$few" &&
    bench throughput --tokens 4096 --sms 16 --experts 16 --ops "$few" && bench_latency; then
    keep_lines
  else
    failed+=("measure; what there is lies in $lines")
  fi
}

step_latency() {
  begin_measuring
  if bench_latency; then keep_lines; else failed+=("latency; what there is lies in $lines"); fi
}

step_examples() {
  need_gpu
  local machine timeline
  machine=$(nvidia-smi --query-gpu=name --format=csv,noheader | sed 's/^NVIDIA //; s/ /-/g' | sort | uniq -c | awk 'NR == 1 { print $1 "x" $2 }')
  timeline=$out/$machine-two-batch-overlap.json
  if timeout 60 "$out/examples/05_two_batch_overlap_cuda" --tokens 256 --hidden 2048 --runs 20 --json "$timeline" --machine "$machine" --commit "$(commit_here)"; then
    say "$timeline: to be moved to docs/figures/ and drawn by benchmarks/timeline.py"
  else
    failed+=("examples")
  fi
}

for step in "${@:-build test measure}"; do
  for word in $step; do
    case "$word" in
      mutants=*) step_mutants "${word#mutants=}" ;;
      build | test | graphs | nodes | faults | litmus | soak | mutants | python | torch | ptx | sanitize | measure | latency | examples) "step_$word" ;;
      *) sed -n '5,23s/^# \?//p' "$0" >&2; exit 2 ;;
    esac
  done
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'gpu: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
say "all good"
