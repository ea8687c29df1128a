#!/usr/bin/env bash
# The verb convert and what follows: generation and training from converted weights, usage, exit codes.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

small_run
ok $? "data and deck"
ranks 1 train -i deck.yaml --set run.dir=a
ok $? "a model is trained" || say_log log
trained=a/checkpoints/step-00000020

# --- to Hugging Face and back ---
ranks 2 convert to-hf $trained -o hf --shard-size 40kB
ok $? "to-hf on 2 ranks" || say_log log
[ -f hf/config.json ] && [ -f hf/model.safetensors.index.json ] && [ "$(echo hf/model-0000*.safetensors | wc -w)" -gt 1 ]
ok $? "config.json, an index and several files: $(cd hf && echo *)"
echo '{"kept": true}' >hf/tokenizer_config.json
ranks 3 convert from-hf hf -o ck
ok $? "from-hf on 3 ranks" || say_log log
ranks 1 verify ck
ok $? "the checkpoint verifies" || say_log log
ranks 1 convert to-hf ck -o hf2 --shard-size 40kB && diff -r hf hf2 >log 2>&1
ok $? "and out again it is the same folder" || say_log log

# --- generation ---
for from in $trained ck; do
  ranks 1 generate --from "$from" --prompt "The " --tokens 30 --temperature 0
  cp log "text-$(basename "$from")"
done
cmp text-step-00000020 text-ck
ok $? "it writes what the trained model writes"

# --- training goes on ---
ranks 1 train -i deck.yaml --set run.dir=b --set train.init=ck --set train.steps=3 --set optimizer.schedule.warmup=0
ok $? "train.init" || say_log log
ranks 2 train -i deck.yaml --set run.dir=c --restart ck --set train.steps=3 --set optimizer.schedule.warmup=0
ok $? "--restart with the checkpoint's folder, on 2 ranks" || say_log log
steps b >s_b
steps c >s_c
near s_c s_b
ok $? "both start at step 0 with the same losses"
[ "$(awk 'NR == 1 { print ($2 + 0.2 < first) }' first="$(steps a | awk 'NR == 1 { print $2 }')" s_b)" = 1 ]
ok $? "from the trained weights, not from new ones: $(awk 'NR == 1 { print $2 }' s_b)"
cmp hf/tokenizer_config.json b/checkpoints/step-00000003/tokenizer_config.json
ok $? "the tokenizer's files go along into the run's checkpoints"
ranks 1 train -i deck.yaml --set run.dir=b --set train.init=ck --set train.steps=4 --set optimizer.schedule.warmup=0
cmp hf/tokenizer_config.json b/checkpoints/step-00000004/tokenizer_config.json
ok $? "and through a restart"
ranks 1 convert to-hf b/checkpoints/step-00000004 -o hf-b && cmp hf/tokenizer_config.json hf-b/tokenizer_config.json &&
  cmp hf/config.json hf-b/config.json
ok $? "and out again, with config.json as it was"

# --- usage and failures ---
refused() { # refused CODE WORDS ARGUMENTS...
  local code=$1 words=$2
  shift 2
  ranks 3 "$@"
  [ $? = "$code" ] && grep -qF -- "$words" log
  ok $? "convert ${*:2}: $(grep -m1 '^saker' log)" || say_log log
}
refused 2 "give from-hf or to-hf" convert
refused 2 "give from-hf or to-hf" convert sideways hf -o x
refused 2 "give one folder" convert from-hf -o x
refused 2 "no output" convert from-hf hf
refused 2 "--dtype fp8" convert to-hf ck -o x --dtype fp8
refused 2 "--shard-size 5 apples" convert to-hf ck -o x --shard-size "5 apples"
refused 2 "options of to-hf" convert from-hf hf -o x --dtype bf16
refused 1 "ck: cannot be created" convert from-hf hf -o ck
refused 1 "nowhere/config.json" convert from-hf nowhere -o x
refused 1 "nowhere" convert to-hf nowhere -o x
refused 1 "a run folder" convert to-hf a -o x
truncate -s -1 hf/model-00001-of-*.safetensors
refused 1 "truncated" convert from-hf hf -o x
[ ! -e x ] && [ -z "$(find . -name '*.tmp.*')" ]
ok $? "nothing is left behind by what was refused"

finish
