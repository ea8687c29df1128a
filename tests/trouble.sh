#!/usr/bin/env bash
# Trouble on a grid of tp 2 x pp 2: signals, kill -9, NaN, and what befalls one rank alone. Nothing hangs, the cause
# is named, and the same command continues with the losses of a run that had no trouble.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
grid=(--set parallel.tp=2 --set parallel.pp=2)

small_run && grid_deck
ok $? "data and deck"

# begin RUN OPTIONS...: starts an endless run in the background and waits for its fourth step; its pid in $job.
begin() {
  local run=$1
  shift
  # shellcheck disable=SC2086
  $MPIRUN -np 4 "$SAKER" train -i deck.yaml --set run.dir="$dir/$run" "${grid[@]}" --set train.steps=100000 \
    --set 'data.valid=[]' "$@" >"$run.log" 2>&1 &
  job=$!
  for _ in $(seq 1200); do
    grep -q '"step": *4,.*"loss"' "$run/metrics.jsonl" 2>/dev/null && return 0
    kill -0 "$job" 2>/dev/null || break
    sleep 0.05
  done
  say_log "$run.log"
  return 1
}
# over SECONDS: waits for $job to end by itself; its exit code, 124 when it does not end.
over() {
  local code
  for _ in $(seq $(($1 * 10))); do
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  kill -0 "$job" 2>/dev/null && kill -9 "$job" && wait "$job" 2>/dev/null && return 124
  wait "$job" 2>/dev/null
  code=$?
  return $code
}
# ends_well RUN: status and checkpoint of a graceful stop.
ends_well() {
  local last
  last=$(steps "$1" | tail -1 | cut -d' ' -f1)
  grep -q '"state": *"incomplete"' "$1/status.json" &&
    [ -s "$1/checkpoints/step-$(printf %08d "$last")/manifest.json" ]
}
# goes_on RUN DESCRIPTION: three more steps by the same command; all losses are those of the quiet run, digit for digit.
goes_on() {
  local reached to
  reached=$(steps "$1" | tail -1 | cut -d' ' -f1)
  to=$((reached + 3))
  ranks 4 train -i deck.yaml --set run.dir="$1" "${grid[@]}" --set 'data.valid=[]' --set train.steps=$to \
    --set checkpoint.every=3
  ok $? "$2: the same command continues" || say_log log
  if [ "$(wc -l <s_quiet)" -lt $to ]; then
    ranks 4 train -i deck.yaml --set run.dir=quiet "${grid[@]}" --set 'data.valid=[]' --set train.steps=$to
    steps quiet >s_quiet
  fi
  [ "$reached" -ge 4 ] && [ "$(steps "$1")" = "$(head -n $to s_quiet)" ]
  ok $? "$2: losses of a quiet run, digit for digit, to step $to"
}
: >s_quiet

# rank RUN N: the process that is rank N of that run (Open MPI's name for it, or PMI's).
rank() {
  local p
  for p in /proc/[0-9]*; do
    grep -qs "run.dir=$dir/$1" "$p/cmdline" && grep -qsz -e "^OMPI_COMM_WORLD_RANK=$2\$" -e "^PMI_RANK=$2\$" "$p/environ" &&
      echo "${p#/proc/}" && return 0
  done
  return 1
}

# --- signals: to the launcher, to one rank ---
# (A launcher that gets SIGINT itself kills its ranks after a moment; jobscripts/local.sh makes SIGUSR1 of it.)
for signal in USR1 INT; do
  begin $signal
  if [ $signal = USR1 ]; then kill -USR1 "$job"; else kill -INT "$(rank INT 2)"; fi
  over 60
  ok $? "SIG$signal ends the run with exit code 0"
  ends_well $signal && grep -q "Stopped after step.*\(SIG$signal\|another rank\)" $signal.log
  ok $? "with a checkpoint of its last step, status incomplete"
  goes_on $signal "SIG$signal"
done

# --- kill -9 ---
begin killed --set checkpoint.every=3
for p in /proc/[0-9]*; do # the launcher and all ranks at once
  [ "$p" = "/proc/$$" ] || ! grep -qs "run.dir=$dir/killed" "$p/cmdline" || kill -9 "${p#/proc/}" 2>/dev/null
done
over 60
grep -q '"state": *"running"' killed/status.json
ok $? "kill -9 of all: nobody could write a status"
goes_on killed "kill -9 of all"

begin one --set checkpoint.every=3
kill -9 "$(rank one 2)"
over 60
code=$?
[ $code != 0 ] && [ $code != 124 ]
ok $? "kill -9 of rank 2 ends the run (exit code $code)"
goes_on one "kill -9 of rank 2"

# --- NaN ---
ranks 4 train -i deck.yaml --set run.dir=nan "${grid[@]}" --set optimizer.lr=1.0e+30 --set optimizer.schedule.warmup=0 \
  --set checkpoint.every=1
[ $? = 1 ] && grep -Eq 'step [0-9]+: loss .*the gradient of model\.[a-z0-9._]* is not finite' log
ok $? "NaN: exit code 1, step and parameter named" || say_log log
last=$(steps nan | tail -1 | cut -d' ' -f1)
grep -q '"state": *"failed"' nan/status.json && [ -d "nan/checkpoints/step-$(printf %08d "${last:-0}")" ]
ok $? "NaN: status failed; the latest checkpoint is of the last good step"

# --- one rank alone ---
# odd_one COMMAND RUN OPTIONS...: ranks 0 to 2 as usual, rank 3 through the launcher's arguments or command given.
odd_one() {
  local odd=$1 run=$2
  shift 2
  # shellcheck disable=SC2086
  timeout -k 5 120 $MPIRUN -np 3 "$SAKER" train -i "$dir/deck.yaml" --set run.dir="$dir/$run" "${grid[@]}" "$@" \
    : -np 1 $odd "$SAKER" train -i "$dir/deck.yaml" --set run.dir="$dir/$run" "${grid[@]}" "$@" >log 2>&1
}
# shellcheck disable=SC2016 # the new script's own arguments
for limit in v f; do # -v: KiB of memory, -f: KiB of a file
  printf '#!/bin/sh\nulimit -%s "$1" && shift && exec "$@"\n' $limit >limit_$limit
  chmod +x limit_$limit
done
if ldd "$SAKER" | grep -q libasan; then
  skip "out of memory on rank 3: AddressSanitizer needs terabytes of addresses"
else
  odd_one "./limit_v 1500000" memory --set train.micro_batch=8000 --set train.global_batch=16000
  [ $? = 1 ] && grep -q 'out of memory on rank 3' log && grep -q '"state": *"failed"' memory/status.json
  ok $? "out of memory on rank 3: exit code 1, the rank is named" || say_log log
fi

odd_one "./limit_f 100" disk --set checkpoint.every=1
[ $? = 1 ] && grep -q 'third failed save in a row' log && grep -q '"state": *"failed"' disk/status.json
ok $? "rank 3 cannot write: exit code 1 after the third checkpoint" || say_log log
# A failure is known a step later: training goes on while checkpoints are written.
[ -z "$(ls disk/checkpoints 2>/dev/null)" ] && [ "$(steps disk | wc -l)" = 4 ]
ok $? "nothing half written is left"

# A token outside the vocabulary, which only rank 3 sees: its working directory has another file of that name.
mkdir other && cp text.h5 other
at=$(LC_ALL=C grep -obUaP 'L\x00i\x00c\x00e\x00n\x00s\x00e\x00' text.h5 | head -1 | cut -d: -f1)
printf '\377\377' | dd of=other/text.h5 bs=1 seek="$at" conv=notrunc 2>/dev/null
damaged() { # damaged SET OPTIONS...
  local set=$1 code
  shift
  rm -rf damaged
  odd_one "-wdir $dir/other" damaged --set "data.$set=[{path: /proc/self/cwd/text.h5}]" --set train.eval_every=2 "$@"
  code=$?
  [ $code = 1 ] && grep -q 'text.h5: token [0-9]* is 65535' log && grep -q '"state": *"failed"' damaged/status.json
  ok $? "rank 3 reads damaged data.$set: exit code 1 (it was $code), file and token named" || say_log log
}
damaged train --set train.steps=45
damaged valid
damaged valid --set parallel.tp=1 --set parallel.cp=2
finish
