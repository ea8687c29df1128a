# shellcheck shell=bash
# tap.sh: what the shell tests share; sourced, not run.
# Environment: SAKER (the program), SAKER_SRCDIR, MPIRUN, set by the makefile and mpirun.sh.
tap_n=0 tap_failed=0

ok() { # ok STATUS DESCRIPTION; fails when STATUS does
  tap_n=$((tap_n + 1))
  if [ "$1" = 0 ]; then
    echo "ok $tap_n - $2"
  else
    echo "not ok $tap_n - $2"
    tap_failed=1
    return 1
  fi
}

skip() { # skip WHY
  tap_n=$((tap_n + 1))
  echo "ok $tap_n # SKIP $1"
}

finish() {
  echo "1..$tap_n"
  exit $tap_failed
}

# say_log FILE: a failed check's evidence, as comments.
say_log() { sed 's/^/# /' "$1" | tail -25; }

# ranks N VERB...: the program on N ranks, output in ./log; returns its exit code. No hang counts as
# anything but a failure (124).
ranks() {
  local n=$1
  shift
  # shellcheck disable=SC2086 # MPIRUN may carry options
  timeout -k 5 "${SAKER_SECONDS:-120}" $MPIRUN -np "$n" "$SAKER" "$@" >log 2>&1
}

# steps RUN: "step loss grad_norm lr" of every step, the last one where a step appears again.
steps() {
  awk '
    function field(key) {
      if (!match($0, "\"" key "\": *[^,}]*")) return ""
      value = substr($0, RSTART, RLENGTH)
      sub(/^[^:]*: */, "", value)
      return value
    }
    !/"event"/ && /"step"/ { last[field("step")] = field("loss") " " field("grad_norm") " " field("lr") }
    END { for (s in last) print s, last[s] }' "$1/metrics.jsonl" | sort -n
}

# same_h5 A B [OBJECT]...: h5diff finds no difference. Its exit code is 0 also where shapes differ ("not comparable").
same_h5() {
  local a=$1 b=$2 what
  shift 2
  for what in "${@:-/}"; do
    h5diff "$a" "$b" "$what" "$what" >diff.txt 2>&1 && ! [ -s diff.txt ] || return 1
  done
}

# near A B: the two runs have the same steps, losses within 2e-6 and norms within 2e-5 relative.
near() {
  [ -s "$1" ] && paste -d' ' "$1" "$2" | awk -v want="$(wc -l <"$1")" '
    function rel(a, b) { d = a - b; if (d < 0) d = -d; return b != 0 ? d / (b < 0 ? -b : b) : d }
    NF != 8 || $1 != $5 || rel($2, $6) > 2e-6 || rel($3, $7) > 2e-5 { bad = 1; print "# " $0 }
    $2 + 0 <= 0 { bad = 1 }
    END { exit bad || NR != want }'
}

# A model of about 20 thousand parameters on the text of a licence: deck.yaml and text.h5 here.
small_run() {
  for _ in 1 2 3; do cat "$SAKER_SRCDIR/LICENSE"; done >text.txt
  ranks 1 data build --tokenizer bytes -o text.h5 text.txt || return 1
  cat >deck.yaml <<EOF
run: {dir: run, seed: 7, device: cpu}
model:
  {pattern: "P-", vocab_size: 257, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2,
   num_key_value_heads: 1, head_dim: 12, intermediate_size: 40, mamba_d_ssm: 32, mamba_n_heads: 4,
   mamba_d_head: 8, mamba_d_state: 8, mamba_chunk_size: 16, mamba_rms_norm: true, pad_token_id: null}
data: {train: [{path: text.h5}], valid: [{path: text.h5}], sequence: 64, documents: isolate}
train: {steps: 20, global_batch: 12, micro_batch: 1, dtype: fp32, eval_every: 10, eval_batches: 2}
optimizer: {lr: 3.0e-3, clip: 1.0, schedule: {kind: cosine, warmup: 4, min_lr: 3.0e-4}}
checkpoint: {every: 10, keep: 3}
EOF
}

# After small_run: four layers, heads for tp 4, a tied matrix, a learning rate that does not depend on train.steps.
grid_deck() {
  sed -i 's/num_hidden_layers: 2/num_hidden_layers: 4/; s/num_attention_heads: 2/num_attention_heads: 4/
    s/pad_token_id: null/tie_word_embeddings: true, pad_token_id: null/; s/kind: cosine/kind: constant/' deck.yaml &&
    grep -q 'num_hidden_layers: 4, num_attention_heads: 4' deck.yaml && grep -q tie_word deck.yaml && grep -q constant deck.yaml
}

# The tests in a private Slurm. give_up WHY: this machine cannot, which is a failure where SAKER_NEED_SLURM=1 asks.
give_up() {
  if [ -n "${SAKER_NEED_SLURM:-}" ]; then ok 1 "$1"; else skip "$1"; fi
  finish
}
must() { # must STATUS DESCRIPTION: without this the rest makes no sense
  ok "$1" "$2"
  [ "$1" != 0 ] || return
  for file in log job.out; do [ ! -e $file ] || say_log $file; done
  finish
}
# start_slurm FOLDER NODES: in FOLDER/slurm; stopped and FOLDER removed at the end of the test.
start_slurm() {
  local tool
  slurm_folder=$1
  for tool in sbatch slurmctld slurmd munged; do
    command -v $tool >/dev/null || give_up "$tool is not installed (Debian: slurm-wlm, munge)"
  done
  [ "$(env -u OMP_NUM_THREADS nproc)" -ge 2 ] || give_up "two cores are needed"
  [ "$(id -u)" = 0 ] || getent hosts "$(hostname -s)" >/dev/null || give_up "the host name does not resolve"
  trap '"$SAKER_SRCDIR/tests/mini-slurm.sh" stop "$slurm_folder/slurm"; sleep 1; rm -rf "$slurm_folder"' EXIT
  "$SAKER_SRCDIR/tests/mini-slurm.sh" start "$1/slurm" "$2" || give_up "a private Slurm does not start on this machine"
  export SLURM_CONF=$1/slurm/slurm.conf
}
