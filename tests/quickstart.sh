#!/usr/bin/env bash
# What `./bootstrap quickstart` must have left in its run folder (runs/quickstart). Not part of
# `make check`: it needs that run, which takes minutes and fetches text.
set -u
cd "$(dirname "$0")/.." || exit 1
run=${1:-runs/quickstart}
# shellcheck source=tests/tap.sh
. tests/tap.sh

grep -q '"state": *"complete"' "$run"/status.json
ok $? "status.json: complete"
grep -q '"event": *"restart"' "$run"/metrics.jsonl
ok $? "the metrics show a restart on the way"
loss=$(steps "$run" | tail -20 | awk '{ sum += $2 } END { if (NR == 20) print sum / NR }')
awk -v loss="${loss:-99}" 'BEGIN { exit !(loss > 0 && loss < 2.3) }'
ok $? "loss of the last 20 steps: ${loss:-none} nats per byte, limit 2.3"
[ "$(wc -c <"$run"/generated.txt)" -ge 200 ]
ok $? "the model has written text"
if command -v gnuplot >/dev/null; then
  [ "$(head -c 4 "$run"/loss.png | tail -c 3)" = PNG ]
  ok $? "loss.png is a picture"
else
  skip "gnuplot is not installed"
fi
finish
