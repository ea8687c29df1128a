#!/usr/bin/env bash
# Training over two nodes of a real Slurm (tests/mini-slurm.sh), MPI over TCP: pipeline stages and context parallel
# ranks on different nodes, with the losses of one rank. Skipped where Slurm cannot run; with SAKER_NEED_SLURM=1
# (`make check-slurm`) that is a failure.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?run me by make check-slurm}/tests/tap.sh"
dir=$(mktemp -d)
start_slurm "$dir" 2
cd "$dir" || exit 1

small_run && grid_deck
must $? "data and deck"
ranks 1 train -i deck.yaml --set run.dir=one --set train.steps=8
must $? "8 steps on one rank"
steps one >s_one

# Both nodes are this machine. Ranks of two nodes must not meet in its shared memory, and each has its own cores only
# in Slurm's books. An mpirun in an allocation takes nodes and ranks from Slurm.
cat >job.sh <<'EOF2'
#!/bin/bash
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMP_NUM_THREADS=1
mpirun bash -c 'echo "place $OMPI_COMM_WORLD_RANK $SLURMD_NODENAME $(hostname)"'
status=0
for grid in pp cp; do
  mpirun "$SAKER" train -i deck.yaml --set run.dir=$grid --set parallel.tp=2 --set parallel.$grid=2 \
    --set train.steps=8 >$grid.txt 2>&1 || status=1
done
exit $status
EOF2
timeout 400 sbatch --wait --nodes=2 --ntasks-per-node=2 --time=5 --output=job.out job.sh >log 2>&1
must $? "a job of two nodes with two ranks each"
grep '^place' job.out | sort | sed 's/^/# /'
[ "$(grep '^place' job.out | cut -d' ' -f2,3 | sort | tr '\n' ' ')" = "0 n1 1 n1 2 n2 3 n2 " ]
ok $? "ranks 0 and 1 are on node n1, 2 and 3 on n2"
hosts=$(grep '^place' job.out | cut -d' ' -f4 | sort -u | wc -l)
for grid in pp cp; do
  steps $grid >s_$grid
  near s_$grid s_one
  ok $? "tp 2 x $grid 2 over two nodes: the losses of one rank, all 8 steps" || say_log $grid.txt
  awk '/^Rank .* host / { on = 1; next } on && $1 !~ /^[0-9]+$/ { exit } on { print $8 }' $grid.txt >seen
  if [ "$hosts" = 2 ]; then
    [ "$(tr '\n' ' ' <seen)" = "n1 n1 n2 n2 " ]
    ok $? "its report shows two hosts: $(paste -sd' ' seen)"
  else
    skip "the nodes have one host name here ($(sort -u seen | paste -sd' ')): the report cannot tell them apart"
  fi
done
ranks 1 verify pp/checkpoints/step-00000008 && ranks 1 verify cp/checkpoints/step-00000008
ok $? "checkpoints written from two nodes are whole"

# A whole node that stands still says nothing; the other one, whose ranks all wait, names it and ends the job.
if [ -n "${SAKER_NEED_SLURM:-}" ]; then
  cat >job3.sh <<'EOF2'
#!/bin/bash
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMP_NUM_THREADS=1
mpirun "$SAKER" train -i deck.yaml --set run.dir=frozen --set parallel.tp=2 --set parallel.pp=2 \
  --set train.steps=100000 --set watch.step=4 >frozen.txt 2>&1
echo $? >frozen.rc
EOF2
  sbatch --nodes=2 --ntasks-per-node=2 --time=30 --output=job3.out job3.sh >log 2>&1
  for _ in $(seq 600); do
    grep -qs '"step": *4,.*"loss"' frozen/metrics.jsonl && break
    sleep 0.1
  done
  for p in /proc/[0-9]*; do
    grep -qs "run.dir=frozen" "$p/cmdline" && grep -qsz -e '^OMPI_COMM_WORLD_RANK=[23]$' "$p/environ" && kill -STOP "${p#/proc/}"
  done
  for _ in $(seq 90); do
    [ -s frozen.rc ] && break
    sleep 0.5
  done
  [ -s frozen.rc ] && [ "$(cat frozen.rc)" != 0 ] && grep -q 'host .* (from rank 2 on) says nothing' frozen.txt
  ok $? "both ranks of node n2 stopped: the other node names it and ends the job" || say_log frozen.txt
  grep 'says nothing' frozen.txt | sed 's/^/# /'
  [ -s frozen.rc ] || scancel --user="$(id -un)"
fi
finish
