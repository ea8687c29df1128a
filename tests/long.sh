#!/usr/bin/env bash
# A sequence of 131,072 tokens in one document on one GPU: two steps of a narrow model in fp32 against the CPU and
# against cp 2; with SAKER_LONG=1 also Falcon-H1-0.5B in bf16 against cp 2. Without a GPU all is skipped.
# SAKER_LENGTH: another length, for trying the script.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" = 0 ] && [ -z "${SAKER_LENGTH:-}" ]; then
  skip "there is no GPU"
  finish
fi
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
length=${SAKER_LENGTH:-131072}
for _ in $(seq 13); do cat "$SAKER_SRCDIR/LICENSE"; done >text.txt
ranks 1 data build --tokenizer bytes -o text.h5 text.txt
ok $? "data"
cat >deck.yaml <<END
run: {dir: run, seed: 7, device: cuda}
model:
  {pattern: "P-", vocab_size: 257, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
   num_key_value_heads: 1, head_dim: 32, intermediate_size: 64, mamba_d_ssm: 64, mamba_n_heads: 2,
   mamba_d_head: 32, mamba_d_state: 32, mamba_chunk_size: 128, mamba_rms_norm: true, pad_token_id: null,
   max_position_embeddings: $length}
data: {train: [{path: text.h5}], sequence: $length, documents: concatenate}
train: {steps: 2, global_batch: 1, micro_batch: 1, dtype: fp32, recompute: full}
optimizer: {lr: 3.0e-3, clip: 1.0, schedule: {kind: constant, warmup: 0}}
checkpoint: {every: 1000}
END

# alike A B LOSS NORM: the two runs' losses and norms are that close, of as many steps.
alike() {
  steps "$1" >s_a
  steps "$2" >s_b
  paste -d' ' s_a s_b | awk -v loss="$3" -v norm="$4" '
    function rel(a, b) { d = a - b; if (d < 0) d = -d; return d / (b < 0 ? -b : b) }
    NF != 8 || $2 == 0 || !(rel($2, $6) <= loss) || !(rel($3, $7) <= norm) { bad = 1 }
    { printf "# step %d: losses %.7f %.7f, norms %.7f %.7f\n", $1, $2, $6, $3, $7 }
    END { exit bad || NR == 0 }'
}
SAKER_SECONDS=400
export OMP_NUM_THREADS=${SAKER_THREADS:-$(env -u OMP_NUM_THREADS nproc)}
ranks 1 train -i deck.yaml --set run.dir=cpu --set run.device=cpu
ok $? "a narrow model on the CPU: $(steps cpu | paste -sd' ')" || say_log log
export OMP_NUM_THREADS=1
if [ "$gpus" != 0 ]; then
  ranks 1 train -i deck.yaml --set run.dir=one
  ok $? "on one GPU" || say_log log
  alike one cpu 1e-5 1e-4
  ok $? "losses within 1e-5 and norms within 1e-4 of the CPU's"
fi
if [ "$gpus" -lt 2 ]; then
  skip "cp 2: there are no two GPUs"
  finish
fi
ranks 2 train -i deck.yaml --set run.dir=two --set parallel.cp=2
ok $? "cp 2 on two GPUs" || say_log log
alike two one 1e-5 1e-4
ok $? "losses within 1e-5 and norms within 1e-4 of one GPU's"
if [ -z "${SAKER_LONG:-}" ]; then
  skip "Falcon-H1-0.5B: SAKER_LONG is not set"
  finish
fi
big=(--set "model={hf_config: $SAKER_SRCDIR/input/falcon-h1-0.5b.json, max_position_embeddings: $length}"
  --set train.dtype=bf16 --set train.steps=1)
ranks 1 train -i deck.yaml --set run.dir=big1 "${big[@]}"
ok $? "Falcon-H1-0.5B in bf16 on one GPU" || say_log log
grep '^step' log | sed 's/^/# /'
ranks 2 train -i deck.yaml --set run.dir=big2 --set parallel.cp=2 "${big[@]}"
ok $? "Falcon-H1-0.5B in bf16, cp 2" || say_log log
grep '^step' log | sed 's/^/# /'
alike big2 big1 1e-3 1e-2
ok $? "losses within 1e-3 and norms within 1e-2 of one GPU's"
finish
