#!/usr/bin/env bash
# installed.sh SAKER PKGDATADIR COMPLETIONDIR: `make installcheck`: the installed program and files work without the
# source tree: help, token data, two steps of training, evaluation, checks, completion.
set -eu
saker=${1:?} data=${2:?} completion=${3:?}
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
step() {
  echo "installcheck: $1"
  shift
  "$@" >log 2>&1 || {
    cat log
    exit 1
  }
}
step version "$saker" --version
step help "$saker" --help
for verb in $("$saker" --help | awk '/^  [a-z]/ && $1 != "saker" { print $1 }'); do step "help $verb" "$saker" help "$verb"; done
step "a released configuration" "$saker" info "$data/input/falcon-h1-0.5b.json"
grep -q 521411104 log
for _ in $(seq 40); do echo "The falcon rose over the river and turned into the wind."; done >text.txt
step "data build" "$saker" data build -o text.h5 text.txt
step "data check" "$saker" data check text.h5
cat >deck.yaml <<'DECK'
run: {dir: run, device: cpu}
model: {pattern: "P-", vocab_size: 257, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1,
  intermediate_size: 16, mamba_d_ssm: 16, mamba_n_heads: 2, mamba_d_head: 8, mamba_d_state: 4, mamba_chunk_size: 8, pad_token_id: null}
data: {train: [{path: text.h5}], valid: [{path: text.h5}], sequence: 32}
train: {steps: 2, global_batch: 2, micro_batch: 1, dtype: fp32}
DECK
step train "$saker" train -i deck.yaml
step verify "$saker" verify run/checkpoints/step-00000002
step eval "$saker" eval -i deck.yaml --from run/checkpoints/step-00000002
step generate "$saker" generate --from run/checkpoints/step-00000002 --prompt The --tokens 5
completed() {
  # shellcheck source=docs/completion/saker
  . "$completion/saker"
  COMP_WORDS=("$saker" tr) COMP_CWORD=1
  _saker
  [ "${COMPREPLY[*]}" = train ]
}
step completion completed
echo "installcheck: all is well"
