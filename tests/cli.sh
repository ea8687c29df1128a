#!/usr/bin/env bash
# The command line and bad input: one clear message that names the cause and the cure, the right exit
# code on every number of ranks, no hang.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

# --- without MPI ---
"$SAKER" --version | grep -Eq '^saker [0-9]' && "$SAKER" --version | grep -Eq '^Built with(out)? CUDA'
ok $? "--version, and what it was built with"
"$SAKER" --help | grep -q 'generate'
ok $? "--help lists the verbs"
"$SAKER" help train | grep -q -e '--max-time'
ok $? "help train"
"$SAKER" train --help-keys optimizer >keys && grep -q 'optimizer.schedule.kind' keys && ! grep -q 'data.sequence' keys
ok $? "--help-keys PREFIX"
"$SAKER" train --help-keys optimiser >keys 2>log
[ $? = 2 ] && grep -q 'did you mean "optimizer"' log && ! [ -s keys ]
ok $? "--help-keys with a prefix that no key has: exit code 2 and a proposal"
"$SAKER" train my.yaml >log 2>&1
[ $? = 2 ] && grep -q 'a deck is given with -i: -i my.yaml' log
ok $? "train with a deck but no -i: exit code 2 and the cure"
"$SAKER" tarin >log 2>&1
[ $? = 2 ] && grep -q "did you mean 'train'" log
ok $? "an unknown verb: exit code 2 and a proposal"
"$SAKER" train --print-defaults >defaults.yaml && grep -q '^optimizer:' defaults.yaml
ok $? "--print-defaults"
"$SAKER" --versoin >log 2>&1
[ $? = 2 ] && grep -q "^saker: unknown option '--versoin'" log
ok $? "an unknown option before the verb"
SAKER_MPI_THREADS=many "$SAKER" info . >log 2>&1
[ $? = 2 ] && grep -q '^saker: SAKER_MPI_THREADS=many: give single, funneled, serialized or multiple$' log
ok $? "SAKER_MPI_THREADS with a level that MPI does not have: exit code 2"

small_run
ok $? "data and deck"
ranks 1 data info text.h5 && grep -q 'tokens' log
ok $? "data info"
cp text.h5 tokens.h5
ranks 1 train -i defaults.yaml --check --set model.hidden_size=64 --set data.sequence=64
ok $? "the printed defaults are a deck" || say_log log
ranks 1 train -i deck.yaml --check --set train.init=nowhere
[ $? = 1 ] && grep -q '^saker: .*nowhere: cannot be opened' log
ok $? "--check looks at train.init"
sed 's/^train: {/train: {stps: 3, /; s/lr: 3.0e-3/lr: fast/; s/sequence: 64/sequence: -4/; s/kind: cosine/kind: cosin/; s/hidden_size: 24/hidden_size: 24, hiden_size: 3/' \
  deck.yaml >wrong.yaml
for n in 1 2; do
  # --- bench: a list of objects with the fields that its readers count on ---
  ranks $n bench step -i deck.yaml --repeat 1 --warmup 0 --json step.json
  [ $? = 0 ] && [ "$(grep -Ec '"(bench|device|ranks|commit|command|model|tokens_per_s|step_ms|model_tflops|peak_gib)":' step.json)" = 10 ]
  ok $? "$n ranks: bench step --json" || say_log log
  if [ $n = 1 ]; then
    ranks 1 bench ops -i deck.yaml --repeat 1 --warmup 0 --json ops.json
    [ $? = 0 ] && [ "$(grep -c '"pct_ceiling":' ops.json)" -ge 25 ]
  else
    ranks $n bench comm --repeat 1 --warmup 0 --json comm.json && ranks $n bench io -i deck.yaml --repeat 1 --json io.json
    [ $? = 0 ] && [ "$(grep -c '"gbps":' comm.json)" = 34 ] && [ "$(grep -c '"message"' comm.json)" = 2 ] && [ "$(grep -c '"gbps":' io.json)" -ge 7 ] && ! [ -e saker-bench ]
  fi
  ok $? "$n ranks: bench ops, comm and io --json" || say_log log
  ranks $n bench stop
  [ $? = 2 ] && grep -q 'give ops, layer, step, comm or io' log
  ok $? "$n ranks: an unknown bench"
  # --- usage ---
  ranks $n train
  [ $? = 2 ] && grep -q -e '-i DECK' log
  ok $? "$n ranks: no deck"
  ranks $n train -i deck.yaml --stes 3
  [ $? = 2 ] && grep -q -e "'--stes'" log
  ok $? "$n ranks: unknown option"
  for deck in missing.yaml nowhere/missing.yaml .; do
    ranks $n train -i $deck
    [ $? = 2 ] && grep -q "$deck: cannot be" log
    ok $? "$n ranks: a deck that cannot be read ($deck), exit code 2" || say_log log
  done

  # --- the deck ---
  ranks $n train -i wrong.yaml
  code=$?
  [ $code = 2 ] && [ "$(grep -Ec '^(saker: )?wrong.yaml:[0-9]+:[0-9]+:' log)" = 5 ] &&
    [ "$(grep -c '\^' log)" -ge 5 ] && grep -q 'did you mean' log
  ok $? "$n ranks: five mistakes, five located messages, exit code 2" || say_log log
  ranks $n train -i deck.yaml --set train.stepz=3 --set optimizer.clip=-1
  [ $? = 2 ] && grep -q -e '--set train.stepz' log && grep -q 'train.steps' log && grep -q -e '--set optimizer.clip' log
  ok $? "$n ranks: mistakes in --set are located"

  ranks $n train -i deck.yaml --set data.train='[{path: nowhere.h5}]'
  [ $? = 1 ] && grep -q 'nowhere.h5: cannot be opened' log && grep -q 'data.train\[0\].*saker data build' log
  ok $? "$n ranks: a data set that is not there" || say_log log

  # --- the grid ---
  ranks $n train -i deck.yaml --set train.global_batch=7 --set train.micro_batch=3
  [ $? = 2 ] && grep -q 'global_batch' log
  ok $? "$n ranks: a batch that cannot be cut, exit code 2"
  ranks $n train -i deck.yaml --set parallel.tp=3
  [ $? = 2 ] && grep -q 'Grids that work' log
  ok $? "$n ranks: an impossible grid names the grids that work, exit code 2"
  ranks $n train -i deck.yaml --check --ranks 5
  [ $? = 2 ] && grep -q 'so many ranks: 1, 2, 3, 4' log
  ok $? "$n ranks: --check --ranks 5 names the sizes that work"
  rm -rf run
  ranks $n train -i deck.yaml --check && ! [ -e run ]
  ok $? "$n ranks: --check makes no run folder"
  ranks $n train -i deck.yaml --dry-run --ranks 4 && grep -q 'activations' log && grep -q 'model.layers.0.mamba.A_log' log
  ok $? "$n ranks: --dry-run prints layers, parameters and memory"

  # --- the device ---
  if ! { nvidia-smi -L 2>/dev/null | grep -q GPU; }; then
    ranks $n train -i deck.yaml --set run.device=cuda
    [ $? != 0 ] && grep -q -e '--with-cuda' -e 'run.device: cpu' log && ! [ -e run ] &&
      [ "$(grep -c '^saker: ' log)" = 1 ]
    ok $? "$n ranks: a GPU asked for and absent, one message that names the cure" || say_log log
    ranks $n train -i deck.yaml --set run.device=auto --set train.steps=1 && grep -q '^Device  .*OpenMP' log
    ok $? "$n ranks: auto takes the CPU where there is no GPU" || say_log log
    rm -rf run
  fi

  # --- data ---
  head -c "$(($(wc -c <text.h5) * 2 / 3))" text.h5 >cut.h5
  ranks $n train -i deck.yaml --set 'data.train=[{path: cut.h5}]'
  [ $? = 1 ] && grep -q 'cut.h5' log && [ "$(grep -c '^saker: ' log)" = 1 ]
  ok $? "$n ranks: a truncated data file is named, exit code 1" || say_log log
  ranks $n train -i deck.yaml --set 'data.train=[{path: none.h5}]'
  [ $? = 1 ] && grep -q 'none.h5' log
  ok $? "$n ranks: a data file that is not there"
  ranks $n data build -o out.h5 none.txt
  [ $? = 1 ] && grep -q 'none.txt' log && ! [ -e out.h5 ]
  ok $? "$n ranks: text that is not there"

  # --- the run folder (a file in its way: as root every folder can be written) ---
  echo x >blocked
  ranks $n train -i deck.yaml --set run.dir=blocked/run
  [ $? = 1 ] && grep -q 'blocked' log && [ "$(grep -c '^saker: ' log)" = 1 ]
  ok $? "$n ranks: an unwritable run folder is named, exit code 1" || say_log log

  # --- checkpoints ---
  rm -rf bad
  ranks $n train -i deck.yaml --set run.dir=bad --set train.steps=2 --set checkpoint.every=1
  ok $? "$n ranks: a run with two checkpoints"
  printf 'X' | dd of=bad/checkpoints/step-00000002/model.h5 bs=1 seek=5000 conv=notrunc 2>/dev/null
  ranks $n verify bad/checkpoints/step-00000002
  [ $? = 1 ] && grep -q 'model.h5' log
  ok $? "$n ranks: verify names the damaged file, exit code 1"
  ranks $n train -i deck.yaml --set run.dir=bad --restart bad/checkpoints/step-00000002
  [ $? = 1 ] && grep -q 'model.h5' log
  ok $? "$n ranks: a damaged checkpoint is named, exit code 1"
  ranks $n generate --from bad/checkpoints/step-00000002 --prompt a
  [ $? = 1 ] && grep -q 'model.h5' log
  ok $? "$n ranks: generate refuses it too"
  cp -r bad older
  ranks $n train -i deck.yaml --set run.dir=older --set train.steps=3
  [ $? = 0 ] && grep -q 'step-00000002' log && grep -q '"step": *1, *"checkpoint"' older/metrics.jsonl
  ok $? "$n ranks: auto passes over the damaged one with a warning" || say_log log
  rm -rf older
  printf 'X' | dd of=bad/checkpoints/step-00000001/optimizer.h5 bs=1 seek=5000 conv=notrunc 2>/dev/null
  ranks $n train -i deck.yaml --set run.dir=bad --set train.steps=3
  [ $? = 1 ] && grep -q 'step-00000001' log && grep -q 'step-00000002' log
  ok $? "$n ranks: none whole: exit code 1, never a fresh start"
done

# --- generate ---
ranks 1 train -i deck.yaml --set train.steps=2
ranks 1 generate --from run/checkpoints/step-00000002 --prompt 'The ' --tokens 40 --seed 3 && cp log text1
ranks 2 generate --from run/checkpoints/step-00000002 --prompt 'The ' --tokens 40 --seed 3 && cmp log text1
ok $? "generate writes the same text on 1 and 2 ranks"
grep -q '^The ' text1
ok $? "it begins with the prompt"
ranks 1 generate --from run --prompt 'The '
[ $? = 1 ] && grep -q 'run: a run folder; give one of its checkpoints' log
ok $? "a run folder in place of a checkpoint is told apart"
ranks 1 generate --from run/checkpoints/step-00000002 --prompt ''
[ $? = 2 ]
ok $? "an empty prompt is refused"
finish
