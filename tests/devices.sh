#!/usr/bin/env bash
# Training on two GPUs by every axis and pipeline transport, with checkpoints that move between the CPU and GPUs and
# between grids: losses as of one rank on the CPU, in fp32 within 1e-5. Without two GPUs all is skipped.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
if [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" -lt 2 ]; then
  skip "there are no two GPUs"
  finish
fi
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
small_run && grid_deck
ok $? "data and deck"
if ! ranks 1 train -i deck.yaml --set run.device=cuda --check; then
  skip "this program was built without CUDA"
  finish
fi
ranks 1 train -i deck.yaml --set run.dir=cpu --set train.steps=24
ok $? "24 steps on the CPU" || say_log log
steps cpu >s_cpu

# close RUN N: its N steps have the losses of the CPU.
close() {
  steps "$1" >s_run
  head -n "$2" s_cpu | paste -d' ' s_run - | awk -v want="$2" '
    function rel(a, b) { d = a - b; if (d < 0) d = -d; return d / (b < 0 ? -b : b) }
    NF != 8 || $1 != $5 || !(rel($2, $6) <= 1e-5) { bad = 1; print "# " $0 }
    NF == 8 && rel($2, $6) > worst { worst = rel($2, $6) }
    END { print "# worst", worst; exit bad || NR != want }'
}

# leg STEPS RANKS OPTIONS...: goes on until STEPS.
leg() {
  local to=$1 n=$2 how
  shift 2
  how=$*
  ranks "$n" train -i deck.yaml --set run.dir=run --set train.steps="$to" "$@"
  ok $? "to step $to, number of ranks $n${how//--set/}" || say_log log
  close run "$to"
  ok $? "the losses are the CPU's"
}
gpu=(--set run.device=cuda)
leg 3 1 --set run.device=cpu
leg 6 2 "${gpu[@]}" --set parallel.tp=2
leg 9 2 "${gpu[@]}" --set parallel.cp=2
leg 12 2 --set run.device=cpu --set parallel.pp=2
leg 15 2 "${gpu[@]}" --set parallel.pp=2
grep -q '^Pipe    between pipeline stages by ipc$' log && grep '"event": *"grid"' run/metrics.jsonl | tail -1 | grep -q '"transport": *"ipc"'
ok $? "auto takes ipc within a node, and says so in the log and in the grid event"
leg 18 2 "${gpu[@]}" # dp 2
leg 21 1 "${gpu[@]}"
leg 24 3 --set run.device=cpu

for transport in ipc mpi nccl; do
  for schedule in 1f1b interleaved zb-h1; do
    set -- --set parallel.transport=$transport --set parallel.schedule=$schedule
    [ $schedule != interleaved ] || set -- "$@" --set parallel.virtual_stages=2
    rm -rf one two
    ranks 2 train -i deck.yaml --set run.dir=one --set train.steps=12 "${gpu[@]}" --set parallel.pp=2 "$@" &&
      grep -q "^Pipe    between pipeline stages by $transport$" log
    ok $? "pp 2, $transport, $schedule" || say_log log
    close one 12
    ok $? "the losses are the CPU's"
    ranks 2 train -i deck.yaml --set run.dir=two --set train.steps=12 "${gpu[@]}" --set parallel.pp=2 "$@" &&
      [ -s s_run ] && [ "$(steps two)" = "$(cat s_run)" ]
    ok $? "a second run has the same digits"
  done
done
finish
