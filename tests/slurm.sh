#!/usr/bin/env bash
# jobscripts/slurm.sh in a real Slurm (tests/mini-slurm.sh): a chain of jobs, of which one is told to stop as before
# its time limit and one loses a rank by kill -9, ends with the bits of an uninterrupted run. Here the jobs submit
# each other and start by srun; `make check-slurm` (SAKER_NEED_SLURM=1) also lets a job requeue itself and start by
# mpirun, and fails where Slurm cannot run, which otherwise is a skip.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?run me by make check-slurm}/tests/tap.sh"
dir=$(mktemp -d)
start_slurm "$dir" 1
cd "$dir" || exit 1

# A model of a few thousand parameters, slow enough (many steps) to be caught in the act.
steps=400
for _ in $(seq 20); do cat "$SAKER_SRCDIR/LICENSE"; done >text.txt
cat >deck.yaml <<EOF
run: {dir: unused, seed: 7, device: cpu}
model: {pattern: "P-", vocab_size: 264, hidden_size: 32, num_hidden_layers: 2,
  num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, intermediate_size: 64,
  mamba_d_ssm: 64, mamba_n_heads: 4, mamba_d_head: 16, mamba_d_state: 16, mamba_chunk_size: 32,
  mamba_rms_norm: true}
data: {train: [{path: text.h5}], sequence: 32}
train: {steps: $steps, global_batch: 8, micro_batch: 4, dtype: fp32}
optimizer: {lr: 1.0e-3, schedule: {kind: constant, warmup: 5}}
checkpoint: {every: 20, keep: 2}
EOF
ranks 1 data build --tokenizer bytes -o text.h5 text.txt
must $? "the data set is built"
export OMP_NUM_THREADS=1
ranks 2 train -i deck.yaml --set run.dir=straight
must $? "a run without a batch system"

# reaches RUN STEP SECONDS: waits for a step in the run's metrics.
reaches() {
  for _ in $(seq $(($3 * 10))); do
    [ "$(steps "$1" 2>/dev/null | tail -1 | cut -d' ' -f1 | grep . || echo 0)" -ge "$2" ] && return 0
    sleep 0.1
  done
  return 1
}
jobs_done() { cat "$1/jobs.txt" 2>/dev/null | wc -l; }
# has_jobs RUN NUMBER SECONDS: waits until so many jobs of the run have ended.
has_jobs() {
  for _ in $(seq $(($3 * 5))); do
    [ "$(jobs_done "$1")" -ge "$2" ] && return 0
    sleep 0.2
  done
  return 1
}
running() { # waits for a running job; prints its number
  for _ in $(seq 150); do
    squeue -h -t R -o %i | grep . && return 0
    sleep 0.2
  done
  return 1
}
kill_rank() { # kill_rank RUN: kill -9 of one of its ranks
  local p victim=
  for p in /proc/[0-9]*; do
    tr '\0' ' ' 2>/dev/null <"$p/cmdline" | grep -qs "^$SAKER train .*run.dir=$dir/$1 " && victim=${p#/proc/}
  done
  [ -n "$victim" ] && kill -9 "$victim"
}
same_as_straight() { # same_as_straight RUN: losses, and the datasets of the last checkpoint
  local file last
  last=checkpoints/step-$(printf %08d $steps)
  steps straight >straight.txt
  steps "$1" >run.txt
  [ "$(wc -l <run.txt)" = $steps ] && cmp straight.txt run.txt || return 1
  for file in model.h5 optimizer.h5; do
    data "straight/$last" $file >a.txt
    data "$1/$last" $file >b.txt
    [ "$(grep -c sum64 a.txt)" -ge 20 ] && cmp a.txt b.txt || return 1
  done
}
data() { # data CHECKPOINT FILE: names and hashes of its datasets (the files differ in the run's id)
  tr -d '\n ' <"$1/manifest.json" | sed "s/.*\"name\":\"$2\"//; s/\"name\":\"[a-z]*\.h5\".*//" |
    grep -o '"name":"[^"]*"\|"start"[^}]*'
}

# ends_with RUN NUMBER WHAT: that job has ended with that exit code (1: not 0) and decision.
ends_with() {
  has_jobs "$1" "$2" 90
  cat "$1".out follow.out "$1"/jobs.txt >log 2>/dev/null
  [ "$(awk -v n="$2" 'NR == n { print ($5 != 0) $6 }' "$1/jobs.txt")" = "$3" ]
}

# chain RUN MIDDLE SBATCH_OPTIONS...: the first job is told to stop as Slurm does before the time limit, in the second
# one a rank dies, the third one completes. MIDDLE: what to do between two jobs.
chain() {
  local run=$1 middle=$2
  shift 2
  sbatch --parsable --time=30 --output="$run.out" "$@" "$SAKER_SRCDIR/jobscripts/slurm.sh" deck.yaml "$dir/$run" >job
  must $? "$run: sbatch takes jobscripts/slurm.sh"
  reaches "$run" 25 60 && scancel --batch --signal=USR1 "$(running)"
  ends_with "$run" 1 0again
  must $? "$run: the first job saves and stops on the signal"
  $middle "$(cat job)"
  reaches "$run" $(($(awk 'END { print $4 }' "$run/jobs.txt") + 25)) 90 && kill_rank "$run"
  ok $? "$run: a second job goes on by itself; one of its ranks is killed"
  ends_with "$run" 2 1again
  must $? "$run: that job fails"
  $middle "$(cat job)"
  ends_with "$run" 3 0done
  must $? "$run: a third job completes the run"
  sed 's/^/# /' "$run/jobs.txt"
  same_as_straight "$run"
  ok $? "$run: all $steps losses and the last checkpoint's data are those of one straight run, bit for bit"
}
# shellcheck disable=SC2317 # chain calls them
nothing() { :; }
# A requeued job waits for two minutes: let it start now, though not in the second in which it ended, whose credentials
# are revoked.
# shellcheck disable=SC2317
start_now() {
  for _ in $(seq 200); do
    squeue -h -t PD -j "$1" 2>/dev/null | grep -q . && break
    sleep 0.3
  done
  sleep 2
  for _ in $(seq 200); do
    squeue -h -t R -j "$1" 2>/dev/null | grep -q . && return
    scontrol update JobId="$1" StartTime=now >/dev/null 2>&1
    sleep 0.3
  done
}
export SAKER_SUBMIT="--time=30 --output=$dir/follow.out" SAKER_AGAIN=follow
chain srun nothing
[ "$(awk '{ print $2 }' srun/jobs.txt | sort -u | wc -l)" = 3 ]
ok $? "srun: the three are jobs of their own"

# A rank that stops: the watchdog names it and the job is down; Slurm's own time limit is far away.
sbatch --parsable --time=30 --output=stopped.out "$SAKER_SRCDIR/jobscripts/slurm.sh" deck.yaml "$dir/stopped" \
  --set train.steps=100000 --set watch.step=5 >job
reaches stopped 15 60
for p in /proc/[0-9]*; do
  tr '\0' ' ' 2>/dev/null <"$p/cmdline" | grep -qs "^$SAKER train .*run.dir=$dir/stopped " && victim=${p#/proc/}
done
kill -STOP "$victim"
begin=$(date +%s%N)
has_jobs stopped 1 30
took=$((($(date +%s%N) - begin) / 1000000))
grep -q 'rank [01] on host .* does not run for .*step' stopped/run.log && [ "$(awk '{ print $5 != 0 }' stopped/jobs.txt | head -1)" = 1 ]
ok $? "a stopped rank is named and its job is over after $took ms"
[ $took -lt 6000 ]
ok $? "within the limit of 5 s (and one for the batch script)"
touch stopped/STOP # the job that follows ends and is followed by none; cancelled while it runs it would save and queue another
for _ in $(seq 200); do
  squeue -h | grep -q . || break
  sleep 0.3
done

if [ -n "${SAKER_NEED_SLURM:-}" ]; then
  export SAKER_AGAIN=requeue SAKER_LAUNCHER=mpirun OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  chain mpirun start_now
  [ "$(awk '{ print $2 }' mpirun/jobs.txt | sort -u | wc -l)" = 1 ]
  ok $? "mpirun: one job, queued again twice"
fi
finish
