#!/usr/bin/env bash
# One training run that changes its process grid at every restart, with tied embeddings, against a run on one rank;
# and whether --dry-run's parameter counts are those of the real ranks.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

small_run && grid_deck
ok $? "data and deck"
ranks 1 train -i deck.yaml --set run.dir=one --set train.steps=24
ok $? "24 steps on one rank" || say_log log
steps one >s_one

# planned RANKS GRID...: the parameters of every rank as --dry-run lists them: "[1, 2]"
planned() {
  local n=$1
  shift
  ranks 1 train -i deck.yaml --dry-run --ranks "$n" "$@" || return 1
  awk '/^Ranks on/ { on = 1; next } !NF { on = 0 } on && $1 ~ /^[0-9]+$/ { s = s ", " $(NF - 2) }
    END { print "[" substr(s, 3) "]" }' log
}
# counted RUN: those of the run's latest grid event.
counted() { grep '"event": *"grid"' "$1/metrics.jsonl" | tail -1 | sed 's/.*"parameters": *\(\[[^]]*\]\).*/\1/'; }

# leg STEPS RANKS GRID...: goes on until STEPS.
leg() {
  local to=$1 n=$2 grid
  shift 2
  grid=$*
  ranks "$n" train -i deck.yaml --set run.dir=run --set train.steps="$to" "$@"
  ok $? "to step $to, number of ranks $n${grid//--set/}" || say_log log
  steps run >s_run
  head -n "$to" s_one >s_want
  near s_run s_want
  ok $? "the losses are those of one rank"
  counted run | grep -q '[0-9]' && [ "$(planned "$n" "$@")" = "$(counted run)" ]
  ok $? "its ranks hold the parameters that --dry-run gives them: $(counted run)"
}
leg 5 8 --set parallel.tp=2 --set parallel.pp=2
leg 9 4 --set parallel.cp=2
leg 12 4 --set parallel.tp=4
leg 15 4 --set parallel.pp=4 --set parallel.schedule=zb-h1
leg 18 6 --set parallel.tp=2 --set train.recompute=selective
leg 21 8 --set parallel.cp=4 --set parallel.pp=2 --set train.micro_batch=2
leg 24 1
[ "$(grep -c '"event": *"restart"' run/metrics.jsonl)" = 6 ] && [ "$(wc -l <s_run)" = 24 ]
ok $? "six restarts, 24 steps"
ranks 2 verify run/checkpoints/step-00000024 && ranks 1 verify run/checkpoints/step-00000021
ok $? "the checkpoints are whole"

# --- about half of the model on each rank ---
half() { # half LIST: both entries are 0.45 to 0.60 of one rank's parameters
  local all
  all=$(counted one | tr -d '[]')
  echo "$1" | tr -d '[],' | awk -v all="$all" '{ exit !(NF == 2 && all > 0 && $1 > 0.45 * all && $1 < 0.6 * all &&
    $2 > 0.45 * all && $2 < 0.6 * all) }'
}
half "$(planned 2 --set parallel.tp=2)"
ok $? "tp 2: about half of $(counted one) on each rank: $(planned 2 --set parallel.tp=2)"
half "$(planned 2 --set parallel.pp=2)"
ok $? "pp 2, with two copies of the tied matrix: $(planned 2 --set parallel.pp=2)"

# --- odd numbers of ranks ---
ranks 5 train -i deck.yaml --set run.dir=five --set train.steps=3
[ $? = 2 ] && grep -q '12 is not a multiple of dp x micro_batch = 5 x 1' log && grep -q '10 or 15' log
ok $? "5 ranks and a batch of 12: refused, with the batches that work"
ranks 5 train -i deck.yaml --set run.dir=five --set train.steps=3 --set train.global_batch=15
ok $? "5 ranks and a batch of 15" || say_log log
ranks 1 train -i deck.yaml --set run.dir=fifteen --set train.steps=3 --set train.global_batch=15
steps five >s_five && steps fifteen >s_fifteen && near s_five s_fifteen
ok $? "its losses are those of one rank"
six=(--set model.num_attention_heads=6 --set model.num_key_value_heads=2 --set model.mamba_n_heads=6 --set
  model.mamba_d_ssm=48 --set model.intermediate_size=48 --set data.sequence=96 --set train.steps=3)
ranks 6 train -i deck.yaml --set run.dir=six --set parallel.tp=3 --set parallel.cp=2 "${six[@]}"
ok $? "6 ranks, tp 3 x cp 2, 2 kv heads" || say_log log
ranks 1 train -i deck.yaml --set run.dir=six1 "${six[@]}"
steps six >s_six && steps six1 >s_six1 && near s_six s_six1
ok $? "its losses are those of one rank"
finish
