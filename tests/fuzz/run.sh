#!/usr/bin/env bash
# Fuzzes the readers of foreign files: every tests/fuzz/TARGET.c, or those named, one after the other.
#   make fuzz [FUZZ_SECONDS=600] [FUZZ_TARGETS="deck safetensors"] [FUZZ_KEEP=1]
# Builds the library anew with clang, libFuzzer, and the address and undefined-behaviour sanitizers in ./fuzz. Inputs that
# reach new code gather in fuzz/corpus/TARGET; FUZZ_KEEP=1 adds the fewest small ones that reach all of it to
# tests/fuzz/corpus, which is meant to stay below a megabyte. A finding is an input in fuzz/findings and a failure.
# The last line counts targets. Exit code 77: clang cannot do it.
set -u
src=$(cd "$(dirname "$0")/../.." && pwd)
seconds=${FUZZ_SECONDS:-600}
targets=${FUZZ_TARGETS:-$(cd "$src/tests/fuzz" && basename -s .c -- *.c)}
# A small file must not ask for much memory, nor for long.
limits=(-max_len=65536 -timeout=20 -malloc_limit_mb=512 -rss_limit_mb=2048)
sanitize=address,undefined
export OMPI_CC=clang MPICH_CC=clang # the compiler behind mpicc
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS="suppressions=$src/tests/fuzz/mpi.lsan:print_suppressions=0"
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mkdir -p fuzz/findings && cd fuzz || exit 1

echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d != 0 && n < 0; }' >try.c
if ! mpicc -fsanitize=fuzzer,$sanitize -fopenmp try.c -o try >try.log 2>&1; then
  echo "SKIP: fuzzing needs clang with libFuzzer and OpenMP (Debian: clang, libclang-rt-dev, libomp-dev)"
  exit 77
fi
[ -f config.status ] || "$src/configure" -q CFLAGS="-g -fsanitize=fuzzer-no-link,$sanitize -fno-sanitize-recover=undefined" \
  LDFLAGS=-fsanitize=$sanitize >configure.log 2>&1 || { tail -5 configure.log; exit 1; }
make -s libsaker.a >make.log 2>&1 || { tail -20 make.log; exit 1; }
# Keys and words of all formats, for mutations that make sense.
grep -ohE '"[a-zA-Z_.]{3,}"' "$src"/src/keys.c "$src"/src/model_cfg.c "$src"/io/*.c | tr -d '"' |
  sed 's/.*\.//' | grep -E '^..' | sort -u | sed 's/.*/"&"/' >dictionary

failed=0 passed=0
for t in $targets; do
  mkdir -p "corpus/$t"
  # shellcheck disable=SC2046 # words
  mpicc -g -O1 -fsanitize=fuzzer,$sanitize -fno-sanitize-recover=undefined -fopenmp -I"$src" -I. \
    $(make -s fuzz-flags | tail -1) "$src/tests/fuzz/$t.c" libsaker.a $(make -s fuzz-libs | tail -1) -o "$t" || { failed=$((failed + 1)); continue; }
  "./$t" "${limits[@]}" -max_total_time="$seconds" -dict=dictionary -artifact_prefix="findings/$t-" \
    "corpus/$t" "$src/tests/fuzz/corpus/$t" -print_final_stats=1 >"$t.log" 2>&1
  rc=$?
  echo "$t: $(sed -n 's/^stat::number_of_executed_units: */runs /p' "$t.log"), $(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$t.log" | tail -1), exit code $rc"
  if [ $rc = 0 ]; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    grep -m3 -E '^(==.*ERROR|SUMMARY|.*runtime error|saker:)' "$t.log"
  fi
  [ -z "${FUZZ_KEEP:-}" ] ||
    "./$t" -merge=1 -max_len=1024 "$src/tests/fuzz/corpus/$t" "corpus/$t" >"$t.merge.log" 2>&1
  rm -f "/dev/shm/saker-fuzz-"*
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
