#!/usr/bin/env bash
# Checkpoints behind training, in several files: restarts are bitwise those of the uninterrupted run on several grids;
# stops by the file STOP and by the batch system's clock.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

small_run && grid_deck
ok $? "data and deck"

same_files() { # same_files A B: every HDF5 file of two checkpoints has the same datasets, bit for bit
  local file n=0
  for file in "$1"/*.h5; do
    n=$((n + 1))
    if command -v h5diff >/dev/null; then h5diff "$file" "$2/${file##*/}" || return 1
    else cmp "$file" "$2/${file##*/}" || return 1; fi
  done >diff.txt 2>&1
  [ $n = "$3" ]
}
field() { # field RUN STEP KEY: of the checkpoint event of that step
  sed -n "/\"event\": \"checkpoint\", \"step\": $2,/s/.*\"$3\": \([0-9.e+-]*\).*/\1/p" "$1/metrics.jsonl" | tail -1
}

# --- the uninterrupted run, and the same from its checkpoint of step 10 ---
grids=("1" "2" "3" "4 --set parallel.tp=2 --set parallel.pp=2")
for grid in "${grids[@]}"; do
  n=${grid%% *}
  read -ra more <<<"${grid#"$n"}"
  ranks "$n" train -i deck.yaml "${more[@]}" --set run.dir="whole$n" --set checkpoint.every=5 --set checkpoint.keep=4 \
    --set checkpoint.files=2
  ok $? "$n ranks: 20 steps, two files each, written behind training" || say_log log
  [ "$(grep -c '"event": "checkpoint"' "whole$n/metrics.jsonl")" = 4 ] && [ -n "$(field "whole$n" 10 gbps)" ] &&
    awk -v s="$(field "whole$n" 10 stall_s)" -v w="$(field "whole$n" 10 seconds)" 'BEGIN { exit !(s < w) }'
  ok $? "$n ranks: four checkpoints with time and bandwidth; training went on meanwhile"
  cp -r "whole$n" "half$n" && rm -rf "half$n"/checkpoints/step-000000[12][05] && cp -r "whole$n/checkpoints/step-00000010" "half$n/checkpoints"
  cp -r "half$n" "one$n"
  ranks "$n" train -i deck.yaml "${more[@]}" --set run.dir="half$n" --set checkpoint.files=2
  [ $? = 0 ] && [ "$(steps "half$n")" = "$(steps "whole$n")" ] && [ "$(grep -c '"step": *15,.*"loss"' "half$n/metrics.jsonl")" = 2 ]
  ok $? "$n ranks: from step 10 on the same metrics, digit for digit" || say_log log
  same_files "half$n/checkpoints/step-00000020" "whole$n/checkpoints/step-00000020" 4
  ok $? "$n ranks: and the same weights and optimizer state, bit for bit"
  ranks "$n" train -i deck.yaml "${more[@]}" --set run.dir="one$n" --set checkpoint.files=1 --set checkpoint.async=false \
    --set train.steps=22
  ranks "$n" train -i deck.yaml "${more[@]}" --set run.dir="whole$n" --set checkpoint.files=3 --set train.steps=22
  [ $? = 0 ] && [ "$(steps "one$n")" = "$(steps "whole$n")" ] && [ -e "one$n/checkpoints/step-00000022/model.h5" ] &&
    [ -e "whole$n/checkpoints/step-00000022/model-00003-of-00003.h5" ]
  ok $? "$n ranks: one file, training waiting, and three files: the same losses" || say_log log
  ranks 2 verify "whole$n/checkpoints/step-00000022"
  ok $? "$n ranks: verify" || say_log log
done
! same_files whole1/checkpoints/step-00000015 whole1/checkpoints/step-00000020 4
ok $? "(steps 15 and 20 do differ)"
ranks 3 train -i deck.yaml --set run.dir=half4 --set train.steps=21
ok $? "two files of a tp 2 x pp 2 run are read by 3 ranks" || say_log log

# --- other threads: they compute, and add up what they copy ---
cores=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=$cores
ranks 1 train -i deck.yaml --set run.dir=threads --set checkpoint.every=5 --set checkpoint.keep=4 --set checkpoint.files=2
[ $? = 0 ] && ranks 1 verify threads/checkpoints/step-00000020
ok $? "$cores threads, which leave no core to those that save" || say_log log
OMP_NUM_THREADS=1
slabs() { sed -n '/"start"/s/.*"sum64": //p' "$1/checkpoints/step-00000020/manifest.json"; }
[ "$(steps threads)" = "$(steps whole1 | head -20)" ] && [ "$(slabs threads | wc -l)" -gt 50 ] &&
  [ "$(slabs threads)" = "$(slabs whole1)" ]
ok $? "$cores threads and one: the same metrics, weights and optimizer state, bit for bit"

# --- keep and keep_every ---
ranks 2 train -i deck.yaml --set run.dir=keep --set checkpoint.every=2 --set checkpoint.keep_every=8 --set checkpoint.keep=2
[ $? = 0 ] && [ "$(cd keep/checkpoints && echo *)" = "latest step-00000008 step-00000016 step-00000018 step-00000020" ]
ok $? "keep 2 and keep_every 8"

# --- stops ---
# shellcheck disable=SC2086
$MPIRUN -np 2 "$SAKER" train -i deck.yaml --set run.dir=file --set train.steps=100000 --set checkpoint.every=7 >file.log 2>&1 &
job=$!
for _ in $(seq 600); do
  grep -q '"step": *9,.*"loss"' file/metrics.jsonl 2>/dev/null && break
  sleep 0.05
done
touch file/STOP
wait $job
ok $? "STOP ends with exit code 0"
last=$(steps file | tail -1 | cut -d' ' -f1)
grep -q '"state": *"incomplete"' file/status.json && grep -q 'stopped by the file STOP' file/status.json &&
  [ ! -e file/STOP ] && [ -e "file/checkpoints/step-$(printf %08d "$last")/manifest.json" ]
ok $? "status incomplete with the reason, a checkpoint of the last step, STOP is gone" || say_log file.log
ranks 2 train -i deck.yaml --set run.dir=file --set train.steps=$((last + 2))
ok $? "and the same command goes on" || say_log log

begin=$(date +%s)
SLURM_JOB_END_TIME=$((begin + 14)) ranks 2 train -i deck.yaml --set run.dir=batch --set train.steps=100000
code=$?
[ $code = 0 ] && [ "$(date +%s)" -lt $((begin + 14)) ] && grep -q "stopped by the batch system's time limit" batch/status.json &&
  grep -q 'time left 0:00:' log
ok $? "SLURM_JOB_END_TIME: stops before it (exit code $code)" || say_log log
SLURM_JOB_END_TIME=nonsense ranks 1 train -i deck.yaml --set run.dir=nonsense --set train.steps=1
ok $? "an end that is no number is no limit"
finish
