#!/usr/bin/env bash
# Training as a whole: the same losses on every number of ranks, bitwise restarts, kill -9, early
# stops, NaN, restart rules.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

small_run
ok $? "data and deck"

# --- the same training on 1, 2, 3 and 4 ranks ---
for n in 1 2 3 4; do
  ranks $n train -i deck.yaml --set run.dir=r$n
  ok $? "20 steps on $n ranks" || say_log log
  steps r$n >s$n
done
for n in 2 3 4; do
  near s$n s1
  ok $? "$n ranks: loss within 2e-6 and grad_norm within 2e-5 of one rank's, every step"
done
[ "$(wc -l <s1)" = 20 ] && awk 'NR == 1 { a = $2 } END { exit !($2 < a - 0.3) }' s1
ok $? "the loss falls: $(awk 'NR == 1 || NR == 20 { print $2 }' s1 | paste -sd' ')"
grep -q '"valid_loss"' r1/metrics.jsonl && head -1 r1/metrics.jsonl | grep -q '"event": *"grid"'
ok $? "metrics begin with the grid and have evaluations"

# --- bitwise restart: steps 11 to 20 again from the checkpoint of step 10 ---
same_checkpoint() { # same_checkpoint A B
  if command -v h5diff >/dev/null; then
    same_h5 "$1/model.h5" "$2/model.h5" && same_h5 "$1/optimizer.h5" "$2/optimizer.h5"
  else
    cmp "$1/model.h5" "$2/model.h5" >diff.txt 2>&1 && cmp "$1/optimizer.h5" "$2/optimizer.h5" >>diff.txt 2>&1
  fi
}
for n in 1 2; do
  rm -rf half && cp -r r$n half && rm -rf half/checkpoints/step-00000020
  ranks $n train -i deck.yaml --set run.dir=half
  ok $? "restart from step 10 on $n ranks"
  grep -q '"event": *"restart"' half/metrics.jsonl && [ "$(steps half)" = "$(cat s$n)" ] &&
    [ "$(grep -c '"step": *15,.*"loss"' half/metrics.jsonl)" = 2 ]
  ok $? "its metrics are those of the uninterrupted run, digit for digit"
  same_checkpoint half/checkpoints/step-00000020 r$n/checkpoints/step-00000020
  ok $? "and so are weights and optimizer state, bit for bit"
done
cp half/checkpoints/step-00000020/model.h5 m.h5
! same_checkpoint half/checkpoints/step-00000010 half/checkpoints/step-00000020
ok $? "(and steps 10 and 20 do differ)"

# --- train.steps 0: the initial weights, from which training goes on as if nothing had happened ---
ranks 2 train -i deck.yaml --set run.dir=zero --set train.steps=0 && [ -e zero/checkpoints/step-00000000/optimizer.h5 ] &&
  ranks 1 verify zero/checkpoints/step-00000000
ok $? "train.steps 0 saves a checkpoint of step 0" || say_log log
ranks 2 train -i deck.yaml --set run.dir=zero --set train.steps=0 && grep -q 'has reached step 0' log
ok $? "and has nothing to do a second time" || say_log log
ranks 2 train -i deck.yaml --set run.dir=zero && grep -q '^Restarted from .*step-00000000' log && [ "$(steps zero)" = "$(cat s2)" ]
ok $? "training goes on from it with the digits of a run that began at once" || say_log log

# --- another number of ranks after the restart ---
rm -rf half && cp -r r2 half && rm -rf half/checkpoints/step-00000020
ranks 3 train -i deck.yaml --set run.dir=half
ok $? "restart of a 2-rank run on 3 ranks"
steps half >s_half
near s_half s1
ok $? "its losses are those of one rank"

# --- kill -9 ---
# shellcheck disable=SC2086
$MPIRUN -np 2 "$SAKER" train -i deck.yaml --set run.dir="$dir/killed" --set train.steps=400 \
  --set checkpoint.every=7 --set optimizer.schedule.kind=constant >killed.log 2>&1 &
job=$!
for _ in $(seq 600); do
  [ -d killed/checkpoints/step-00000014 ] && break
  sleep 0.05
done
for p in /proc/[0-9]*; do # the launcher and all ranks at once
  [ "$p" = "/proc/$$" ] || ! grep -qs "run.dir=$dir/killed" "$p/cmdline" || kill -9 "${p#/proc/}"
done
wait $job 2>/dev/null
reached=$(steps killed | tail -1 | cut -d' ' -f1)
[ "${reached:-0}" -ge 14 ] && [ "$reached" -lt 390 ]
ok $? "killed with -9 at step ${reached:-none}"
rm -rf again && cp -r killed again
more=$((reached + 10))
ranks 2 train -i deck.yaml --set run.dir=again --set train.steps=$more --set checkpoint.every=7 \
  --set optimizer.schedule.kind=constant
ok $? "the same command continues"
ranks 2 train -i deck.yaml --set run.dir=straight --set train.steps=$more --set checkpoint.every=7 \
  --set optimizer.schedule.kind=constant
[ "$(steps again)" = "$(steps straight)" ] && grep -q '"event": *"restart"' again/metrics.jsonl
ok $? "and gives the losses of a run that was never killed"

# --- early stops ---
ranks 2 train -i deck.yaml --set run.dir=timed --set train.steps=100000 --max-time 3
ok $? "--max-time ends with exit code 0"
grep -q '"state": *"incomplete"' timed/status.json && ls timed/checkpoints/step-*/manifest.json >/dev/null
ok $? "status incomplete, with a checkpoint"
# shellcheck disable=SC2086
$MPIRUN -np 2 "$SAKER" train -i deck.yaml --set run.dir=usr1 --set train.steps=100000 >usr1.log 2>&1 &
job=$!
for _ in $(seq 300); do
  grep -q '"loss"' usr1/metrics.jsonl 2>/dev/null && break
  sleep 0.05
done
kill -USR1 $job
wait $job
ok $? "SIGUSR1 ends with exit code 0"
grep -q '"state": *"incomplete"' usr1/status.json && grep -q SIGUSR1 usr1.log
ok $? "status incomplete; the signal is named"

env -u MPIRUN SAKER="$SAKER" "$SAKER_SRCDIR"/jobscripts/local.sh 2 train -i deck.yaml --set run.dir=term \
  --set train.steps=100000 >term.log 2>&1 &
job=$!
for _ in $(seq 300); do
  grep -q '"loss"' term/metrics.jsonl 2>/dev/null && break
  sleep 0.05
done
kill -TERM $job
wait $job
ok $? "jobscripts/local.sh: SIGTERM ends with exit code 0"
grep -q '"state": *"incomplete"' term/status.json
ok $? "status incomplete"

# --- rules of the restart ---
ranks 2 train -i deck.yaml --set run.dir=r2
[ $? = 0 ] && grep -q 'Nothing to do' log
ok $? "a finished run: nothing to do, exit code 0"
ranks 2 train -i deck.yaml --set run.dir=r2 --restart none
[ $? = 2 ] && grep -q -e '--restart none' log
ok $? "--restart none on a run with checkpoints is refused"
ranks 2 train -i deck.yaml --set run.dir=r2 --set train.steps=30 --set optimizer.lr=1.0e-3 --set data.sequence=32
[ $? = 2 ] && grep -q 'optimizer.lr' log && grep -q 'data.sequence' log
ok $? "a changed deck is refused with a diff"
ranks 1 train -i deck.yaml --set run.dir=init --set train.init=r1/checkpoints/step-00000020 --set train.steps=1
[ $? = 0 ] && awk -v a="$(awk 'NR == 1 { print $2 }' s1)" -v b="$(steps init | cut -d' ' -f2)" 'BEGIN { exit !(b < a - 0.3) }'
ok $? "train.init takes the weights and starts at step 0"

# --- NaN ---
ranks 2 train -i deck.yaml --set run.dir=nan --set optimizer.lr=1.0e+30 --set optimizer.schedule.warmup=0 \
  --set optimizer.schedule.kind=constant --set optimizer.schedule.min_lr=0 --set checkpoint.every=1
code=$?
[ $code = 1 ] && grep -Eq 'step [0-9]+: loss .*(gradient of [a-z]+[a-z0-9._]* is not finite)' log
ok $? "NaN: exit code 1, step and parameter named"
grep -q '"state": *"failed"' nan/status.json && [ "$(steps nan | grep -c nan)" = 0 ]
ok $? "NaN: status failed, nothing of it in the metrics"
last=$(find nan/checkpoints -maxdepth 1 -name 'step-*' | sort | tail -1)
[ -n "$last" ] && ranks 1 verify "$last" && [ "$(basename "$last")" = "step-$(printf %08d "$(steps nan | tail -1 | cut -d' ' -f1)")" ]
ok $? "NaN: the latest checkpoint is of the last good step"
ranks 2 train -i deck.yaml --set run.dir=skip --set optimizer.lr=1.0e+30 --set optimizer.schedule.warmup=0 \
  --set optimizer.schedule.kind=constant --set optimizer.schedule.min_lr=0 --set train.on_nan=skip \
  --set train.steps=4
[ $? = 0 ] && grep -q '"event": *"skip"' skip/metrics.jsonl
ok $? "train.on_nan skip: steps are skipped and noted"
finish
