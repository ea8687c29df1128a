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

# SAKER_TEST_DEVICE=cuda: on two GPUs, with data parallel and with tensor parallel ranks; else three ranks on the CPU.
device=${SAKER_TEST_DEVICE:-cpu}
small_run && sed -i 's/kind: cosine/kind: constant/; s/, valid: \[[^]]*\]//' deck.yaml
ok $? "data and deck"
default=10 soon=4 limit=$soon # s, of a rank that makes no progress
if [ "$device" = cuda ]; then
  if [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" -lt 2 ] || ! ranks 2 train -i deck.yaml --set run.device=cuda --check; then
    skip "there are no two GPUs, or this program was built without CUDA"
    finish
  fi
  n=2 last=1 setups=("" "--set parallel.tp=2")
  case ${1:-} in dp) setups=("") ;; tp) setups=("--set parallel.tp=2") ;; esac # one of them
else
  n=3 last=2 setups=("")
fi

# train RUN OPTIONS...: as all runs here; $options hold the grid.
train() {
  local run=$1
  shift
  ranks $n train -i deck.yaml --set run.device="$device" --set run.dir="$run" --set checkpoint.every=4 "${options[@]}" "$@"
}
# struck RUN INJECTION OPTIONS...: the run with a fault inside; exit code and, in $down, seconds from the fault to the end.
struck() {
  local run=$1 injection=$2 code
  shift 2
  rm -f struck.txt
  SAKER=$faulty SAKER_SHIM_LOG=$dir/struck.txt SAKER_INJECT=$injection train "$run" --set watch.step=$limit "$@"
  code=$?
  down=never
  [ ! -e struck.txt ] || down=$(awk -v a="$(date -r struck.txt +%s.%N)" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
  return $code
}
goes_on() { # goes_on RUN
  train "$1"
  [ $? = 0 ] && [ "$(steps "$1")" = "$(cat s_quiet)" ] && [ ! -e "$1/stall" ]
  ok $? "the same command continues, with the losses of the quiet run" || say_log log
}
# The watchdog acts after 3/4 of the limit. Of the short one that is a second, in which a launcher may not have ended all.
in_time() { awk -v t="$down" -v most=$((limit == soon ? limit + 1 : limit)) 'BEGIN { exit !(t + 0 > 0 && t <= most) }'; }

for setup in "${setups[@]}"; do
  read -ra options <<<"$setup"
  quiet=quiet${setup//[^a-z0-9]/} at="on $device, ranks: $n${setup//--set/}"
  train "$quiet"
  ok $? "$at: a quiet run" || say_log log
  steps "$quiet" >s_quiet

  for fault in 0:7:stop $last:7:stop $last:7:early-stop 1:7:hang 1:7:early-hang; do
    rank=${fault%%:*} kind=${fault##*:} run=$quiet-${fault//:/-}
    case $kind in *stop) what="does not run" ;; *) what="makes no progress" ;; esac
    if [ "$fault" = 0:7:stop ]; then limit=$default; else limit=$soon; fi
    struck "$run" "$fault"
    code=$?
    [ $code = 1 ] && grep -q "watchdog on rank [012]: rank $rank on host $(hostname) $what for .*step 7" log &&
      grep -q "rank $rank on host.*step 7" "$run/run.log"
    ok $? "$at: $kind of rank $rank in step 7: named, in run.log as well, exit code 1 (it was $code)" || say_log log
    in_time
    ok $? "the job is down after $down s (limit $limit s)" || say_log log
    if [ "$device" = cpu ] || [ "$fault" = 1:7:early-hang ]; then goes_on "$run"; fi # a GPU's start takes seconds
  done
  struck "$quiet-leave" 1:7:early-leave
  code=$?
  [ $code != 0 ]
  ok $? "$at: rank 1 leaves with exit code 0 in step 7: the job ends, exit code $code" || say_log log
  in_time
  ok $? "after $down s"
  goes_on "$quiet-leave"
  struck "$quiet-first" 1:1:stop
  [ $? = 1 ] && grep -q "rank 1 on host $(hostname) does not run" log
  ok $? "$at: a rank stops in the first step" || say_log log
done
[ "${1:-}" != tp ] || finish
options=()
steps quiet >s_quiet
export SAKER_MPI_THREADS=funneled # then the watchdog's thread may call nothing of MPI, and ends its process
struck funneled 1:7:stop
[ $? != 0 ] && grep -q "watchdog on rank 0: rank 1 on host $(hostname) does not run" log
ok $? "with MPI_THREAD_FUNNELED a stopped rank is named; the job is down after $down s" || say_log log
unset SAKER_MPI_THREADS

# One that is slow, and a whole job that is suspended for longer than the limit, are no reason to end anything.
late=$(sed -n 's/.*"step_ms": *\([0-9.]*\).*/\1/p' "$quiet/metrics.jsonl" | sort -g | awk '{ t[NR] = $1 } END { print int(20 + t[int((NR + 1) / 2)]) }')
struck slow "1:1:slow:$late" --set train.steps=60 # milliseconds, more than a step's
[ $? = 0 ] && { [ "$device" = cuda ] || # there the host's time shows slow hosts only (docs/reliability.md)
  { grep -q 'warning: .*rank 1 on host .* is slow' log && grep -q '"event": *"straggler".*"rank": *1' slow/metrics.jsonl; }; }
ok $? "a slow rank is reported and goes on" || say_log log
SAKER=$faulty SAKER_INJECT=0:1:slow:50 train asleep --set watch.step=2 &
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
[ $? = 0 ] && [ ${#ours[@]} = $n ] && ! grep -q watchdog log && [ "$(steps asleep | tail -1)" = "$(tail -1 s_quiet)" ]
ok $? "all ranks suspended for 4 s with a limit of 2 s: the run goes on" || say_log log

# A bit of a weight on one of the data parallel ranks, at the lowest and the highest place. Two of them are both named.
for bit in 0 $((20000 * 32 - 1)); do
  struck bit$bit 1:7:bit:$bit --set watch.replicas=1
  [ $? = 1 ] && grep -q 'step 7: the weights of data parallel ranks differ .*: .*rank 1 on host' log &&
    grep -q 'latest checkpoint is .*step-00000004' log && [ ! -e bit$bit/checkpoints/step-00000008 ]
  ok $? "bit $bit of a weight flips on rank 1: found in the same step, the rank named, nothing of it saved" || say_log log
  goes_on bit$bit
done
struck quiet2 1:7:nothing --set watch.replicas=1
[ $? = 0 ] && [ "$(steps quiet2)" = "$(cat s_quiet)" ]
ok $? "without a flip nothing is reported, and comparing changes no digit"
finish
