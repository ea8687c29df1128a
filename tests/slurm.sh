#!/usr/bin/env bash
# jobscripts/slurm.sh in a real Slurm (tests/mini-slurm.sh): the job is told to stop, queues itself
# again and finishes, with the losses of an uninterrupted run. Skipped where Slurm cannot run; with
# SAKER_NEED_SLURM=1 (`make check-slurm`) that is a failure.
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
data: {train: [{path: text.h5}], sequence: 128}
train: {steps: $steps, global_batch: 8, micro_batch: 4, dtype: fp32}
optimizer: {lr: 1.0e-3, schedule: {kind: constant, warmup: 5}}
checkpoint: {every: 1000, keep: 2}
EOF
ranks 1 data build --tokenizer bytes -o text.h5 text.txt
must $? "the data set is built"
export OMP_NUM_THREADS=1
ranks 2 train -i deck.yaml --set run.dir=straight
must $? "a run without a batch system"

state() { # state WORD SECONDS: waits until the run's status.json says so
  for _ in $(seq $(($2 * 5))); do
    grep -q "\"state\": *\"$1\"" run/status.json 2>/dev/null && return 0
    sleep 0.2
  done
  return 1
}

job=$(sbatch --parsable --time=5 --output=job.out "$SAKER_SRCDIR/jobscripts/slurm.sh" deck.yaml run)
must $? "sbatch takes jobscripts/slurm.sh"
for _ in $(seq 300); do # after a few steps comes the signal that Slurm sends before the time limit
  [ "$(steps run 2>/dev/null | wc -l)" -ge 5 ] && break
  sleep 0.1
done
scancel --batch --signal=USR1 "$job"
state incomplete 60
must $? "the run saves and stops on the signal"
for _ in $(seq 170); do # the job is queued again for two minutes hence: let it start now
  scontrol update JobId="$job" StartTime=now >/dev/null 2>&1
  state complete 1 && break
done
state complete 1
must $? "the job queues itself again and completes the run"
grep -q '"event": *"restart"' run/metrics.jsonl
ok $? "the metrics show a restart"
steps straight >straight.txt
steps run >run.txt
[ "$(wc -l <run.txt)" = $steps ] && cmp -s straight.txt run.txt
ok $? "all $steps steps are those of the run without Slurm, digit for digit"
finish
