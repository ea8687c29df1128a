#!/usr/bin/env bash
# quickstart.sh: fetches English prose, trains a small Falcon-H1 model on it on two ranks, stops on
# the way, restarts from the checkpoint, and lets the model write. `./bootstrap quickstart` builds
# the program first. Everything it makes is under runs/.
set -euo pipefail
cd "$(dirname "$0")/.."
deck=input/quickstart.yaml
run=runs/quickstart
ranks=2
stop_at=100

part() { printf '\n=== %s\n' "$*"; }
saker() { jobscripts/local.sh "$ranks" "$@"; }
# The last step in the run's metrics, 0 before there is one.
step() {
  [ -e $run/metrics.jsonl ] || { echo 0; return; }
  awk -F'"step": *' '/"step"/ { s = $2 + 0 } END { print s + 0 }' $run/metrics.jsonl
}
# Mean loss of the last 20 steps.
loss() {
  awk -F'"loss": *' 'NF > 1 { last[n++ % 20] = $2 + 0 }
    END { for (i in last) { sum += last[i]; m++ } if (m) printf "%.3f", sum / m }' $run/metrics.jsonl
}

part "1/5 Text"
input/fetch-text.sh runs/text

part "2/5 Data sets: bytes in HDF5, written by $ranks ranks"
mkdir -p runs/data
for set in train valid; do
  saker data build --tokenizer bytes -o runs/data/quickstart-$set.h5 runs/text/$set
done

part "3/5 Training, stopped on the way by a signal as a batch system would do"
rm -rf $run
jobscripts/local.sh $ranks train -i $deck &
pid=$!
trap 'kill $pid 2>/dev/null || true' INT TERM # a background job does not hear Ctrl-C itself
while kill -0 $pid 2>/dev/null && [ "$(step)" -lt $stop_at ]; do sleep 0.3; done
kill -USR1 $pid 2>/dev/null || true
wait $pid
trap - INT TERM

part "4/5 The same command again: it continues from the checkpoint"
saker train -i $deck

part "5/5 What the model writes"
newest=$(find $run/checkpoints -maxdepth 1 -name 'step-*' ! -name '*.tmp*' | sort | tail -1)
saker generate --from "$newest" --prompt "And the " --tokens 400 --temperature 0.8 --seed 1 |
  tee $run/generated.txt

part "Done in $SECONDS s"
picture=$run/loss.png
[ -s $picture ] || picture="none, gnuplot is not installed"
echo "loss       $(loss) nats per byte over the last 20 steps (byte frequencies alone: 3.3)"
echo "picture    $picture"
echo "metrics    $run/metrics.jsonl"
echo "checkpoint $newest"
echo "next       edit $deck, or: build/saker help train"
