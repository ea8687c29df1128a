#!/usr/bin/env bash
# quality.sh asan|valgrind|coverage|tidy|cppcheck: one look at the code that the ordinary tests do not take. Run by
# `make check-asan` and so on, in the build folder; each needs its tool (Debian's name is the same).
set -u
src=$(cd "${SAKER_SRCDIR:?}" && pwd) # without "..": gcovr compares paths
jobs=${JOBS:-$(nproc)}

need() {
  command -v "$1" >/dev/null || {
    echo "$1 is not installed" >&2
    exit 1
  }
}

# build FOLDER OPTIONS...: a configuration of its own.
build() {
  [ ! -f "$src/config.status" ] || {
    echo "$src is configured itself, and then cannot be in a second folder: make distclean there, then mkdir build," \
      "cd build, ../configure, and the same target again" >&2
    exit 1
  }
  mkdir -p "$1" && cd "$1" || exit 1
  shift
  [ -f config.status ] || "$src/configure" -q --enable-werror "$@" || exit 1
  make -s -j"$jobs" all || exit 1
}

# Memory errors and undefined behaviour, leaks too. Open MPI's own leaks are suppressed by name.
asan() {
  build asan --disable-native --enable-debug \
    CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
  export LSAN_OPTIONS="suppressions=$src/tests/leaks.supp:print_suppressions=0:fast_unwind_on_malloc=0"
  export SAKER_SECONDS=900
  # The tests preload a library of their own; the sanitizer then comes second and must not mind.
  export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1:abort_on_error=0:exitcode=99:verify_asan_link_order=0
  export UBSAN_OPTIONS=print_stacktrace=1
  local tests=${SAKER_ASAN_TESTS:-$(all_tests)}
  TEST_TIMEOUT=${TEST_TIMEOUT:-3000} make -s check TESTS="$tests"
  make -s check-counts TESTS="$tests"
}

# Without those that start thousands of grids or a batch system.
all_tests() {
  make -s print-tests | tr ' ' '\n' | grep -Ev 'parity|reshard|slurm|device|layering'
}

# A few steps, an evaluation and a restart of a small run on two ranks under valgrind, which does not know all
# instructions of today's CPUs (so no -march=native).
valgrind_run() {
  need valgrind
  build valgrind --disable-native CFLAGS="-O1 -g"
  SAKER=$PWD/saker
  # shellcheck source=tests/tap.sh
  . "$src/tests/tap.sh"
  local dir
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  cd "$dir" || exit 1
  small_run || exit 1
  SAKER="valgrind -q --error-exitcode=77 --suppressions=$src/tests/valgrind.supp $SAKER"
  for run in "train -i deck.yaml --set train.steps=3 --set train.eval_every=2 --set checkpoint.every=2" \
    "train -i deck.yaml --set train.steps=4 --set parallel.tp=2" "verify run/checkpoints/step-00000004" \
    "eval -i deck.yaml --from run/checkpoints/step-00000004"; do
    # shellcheck disable=SC2086 # words
    OMP_NUM_THREADS=1 timeout 900 $MPIRUN -np 2 $SAKER $run >log 2>&1
    code=$?
    grep -E '^==' log
    [ $code = 0 ] && ! grep -qE '^==[0-9]+== (Invalid|Conditional|Use of|Syscall)' log
    ok $? "valgrind: $run" || say_log log
  done
  finish
}

# Lines of src, kernels (CPU) and io that the tests run; at least 85 %.
coverage() {
  need gcovr
  build coverage --disable-native CFLAGS="-O1 -g --coverage -fprofile-update=atomic"
  find . -name '*.gcda' -delete
  TEST_TIMEOUT=${TEST_TIMEOUT:-3000} make -s check TESTS="${SAKER_COVERAGE_TESTS:-$(make -s print-tests)}" || exit 1
  gcovr -r "$src" --object-directory . -f "$src/src/" -f "$src/io/" -f "$src/kernels/" --exclude-throw-branches \
    --print-summary --txt coverage.txt --html-details coverage.html --fail-under-line 85
  local rc=$?
  cat coverage.txt
  echo "Line by line: $PWD/coverage.html"
  exit $rc
}

tidy() {
  need clang-tidy
  local flags
  flags=$(make -s print-flags)
  # shellcheck disable=SC2016 # for the inner shell
  printf '%s\n' "$src"/src/*.c "$src"/io/*.c "$src"/kernels/cpu*.c "$src"/kernels/plan.c | grep -v comm_nccl.c |
    FLAGS="$flags" CONFIG="$src/tests/clang-tidy.yaml" xargs -P "$jobs" -n 4 sh -c \
      'clang-tidy --quiet --warnings-as-errors="*" --config-file="$CONFIG" "$@" -- $FLAGS' tidy
}

cppcheck_run() {
  need cppcheck
  cppcheck -q -j"$jobs" --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
    -D__GNUC__=12 --include="$src/tests/cppcheck.h" --suppress=missingIncludeSystem -I"$src" "$src"/src "$src"/io "$src"/kernels/*.c
}

case ${1:-} in
asan | coverage | tidy) "$1" ;;
valgrind) valgrind_run ;;
cppcheck) cppcheck_run ;;
*)
  echo "usage: quality.sh asan|valgrind|coverage|tidy|cppcheck" >&2
  exit 2
  ;;
esac
