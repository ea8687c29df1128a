#!/usr/bin/env bash
# The watchdog (src/watch.h) and what the ranks tell each other (src/train_watch.c): stopped, hanging, slow and
# differing ranks are named, a job that was suspended as a whole goes on, and what was ended continues.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
faulty=${SAKER_BUILDDIR:?}/tests/faults/saker

small_run && sed -i 's/kind: cosine/kind: constant/; s/, valid: \[[^]]*\]//' deck.yaml
ok $? "data and deck"
limit=4 # of a rank that makes no progress; the default is 10 s
ranks 3 train -i deck.yaml --set run.dir=quiet --set checkpoint.every=4
ok $? "a quiet run on 3 ranks" || say_log log
steps quiet >s_quiet

# struck RUN INJECTION OPTIONS...: the run with a fault inside; exit code and, in $took, seconds.
struck() {
  local run=$1 injection=$2 code begin=$SECONDS
  shift 2
  # shellcheck disable=SC2086
  SAKER_INJECT=$injection timeout -k 5 120 $MPIRUN -np 3 "$faulty" train -i deck.yaml --set run.dir="$run" \
    --set checkpoint.every=4 --set watch.step=$limit "$@" >log 2>&1
  code=$?
  took=$((SECONDS - begin))
  return $code
}
goes_on() { # goes_on RUN
  ranks 3 train -i deck.yaml --set run.dir="$1" --set checkpoint.every=4
  [ $? = 0 ] && [ "$(steps "$1")" = "$(cat s_quiet)" ] && [ ! -e "$1/stall" ]
  ok $? "the same command continues, with the losses of the quiet run" || say_log log
}

for rank in 0 2; do
  struck stop$rank $rank:7:stop
  code=$?
  [ $code = 1 ] && grep -q "watchdog on rank [012]: rank $rank on host $(hostname) does not run" log
  ok $? "rank $rank stops in step 7: named, exit code 1 (it was $code)" || say_log log
  [ $took -le $((limit + 4)) ]
  ok $? "the job is down after $took s, start and 6 steps included (limit $limit s)"
  grep -q "rank $rank on host.*step 7" stop$rank/run.log
  ok $? "run.log says so as well"
  goes_on stop$rank
done
struck hang 1:7:hang
[ $? = 1 ] && grep -q "rank 1 on host $(hostname) makes no progress for .*step 7" log
ok $? "the main thread of rank 1 hangs in step 7: named" || say_log log
goes_on hang
struck first 1:1:stop
[ $? = 1 ] && grep -q "rank 1 on host $(hostname) does not run" log
ok $? "a rank stops in the first step" || say_log log

# One that is slow, and a whole job that is suspended for longer than the limit, are no reason to end anything.
struck slow 1:1:slow:20 --set train.steps=60
[ $? = 0 ] && grep -q 'warning: .*rank 1 on host .* is slow' log && grep -q '"event": *"straggler".*"rank": *1' slow/metrics.jsonl
ok $? "a slow rank is reported and goes on" || say_log log
# shellcheck disable=SC2086
SAKER_INJECT=0:1:slow:50 $MPIRUN -np 3 "$faulty" train -i deck.yaml --set run.dir=asleep --set watch.step=2 >log 2>&1 &
job=$!
for _ in $(seq 300); do
  grep -q '"step": *4,' asleep/metrics.jsonl 2>/dev/null && break
  sleep 0.05
done
ours=()
for p in /proc/[0-9]*; do
  grep -qs "run.dir=asleep" "$p/cmdline" && [ "$(readlink "$p/exe")" = "$faulty" ] && [ "$(readlink "$p/cwd")" = "$dir" ] && ours+=("${p#/proc/}")
done
kill -STOP "${ours[@]}" && sleep 4 && kill -CONT "${ours[@]}"
wait $job
[ $? = 0 ] && [ ${#ours[@]} = 3 ] && ! grep -q watchdog log && [ "$(steps asleep | tail -1)" = "$(tail -1 s_quiet)" ]
ok $? "all three ranks suspended for 4 s with a limit of 2 s: the run goes on" || say_log log

# A bit of a weight on one of the three data parallel ranks, at the lowest and the highest place.
for bit in 0 $((20000 * 32 - 1)); do
  struck bit$bit 1:7:bit:$bit --set watch.replicas=1
  [ $? = 1 ] && grep -q 'step 7: the weights of data parallel ranks differ .*: rank 1 on host' log &&
    grep -q 'latest checkpoint is .*step-00000004' log && [ ! -e bit$bit/checkpoints/step-00000008 ]
  ok $? "bit $bit of a weight flips on rank 1: found in the same step, the rank named, nothing of it saved" || say_log log
  goes_on bit$bit
done
struck quiet2 1:7:nothing --set watch.replicas=1
[ $? = 0 ] && [ "$(steps quiet2)" = "$(cat s_quiet)" ]
ok $? "without a flip nothing is reported, and comparing changes no digit"
finish
