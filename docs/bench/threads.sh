#!/usr/bin/env bash
# What MPI's levels of threads cost: messages and steps on two ranks, the levels in turn.
#   docs/bench/threads.sh SAKER OUT.json [REPEAT]          (OMP_NUM_THREADS, MPIRUN: as you like)
set -eu
saker=$1 out=$2 repeat=${3:-3}
here=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for i in $(seq "$repeat"); do
  for level in single funneled serialized multiple; do
    echo "== $level, $i of $repeat"
    export SAKER_MPI_THREADS=$level
    ${MPIRUN:-mpirun --bind-to none} -np 2 "$saker" bench comm -i "$here/input/bench.yaml" --set run.device=cpu --repeat 5 --json "$dir/comm-$level-$i.json" | grep -A2 'Communication'
    ${MPIRUN:-mpirun --bind-to none} -np 2 "$saker" bench step -i "$here/input/bench.yaml" --set run.device=cpu --set parallel.tp=2 \
      --set data.sequence=64 --set train.global_batch=1 --repeat 15 --json "$dir/step-$level-$i.json"
  done
done
# One list: the messages and the steps of every run; the best of each is printed.
python3 - "$out" "$dir"/*.json <<'END'
import json, sys
rows = [x for f in sys.argv[2:] for x in json.load(open(f)) if x.get("kind") == "message" or x["bench"] == "step"]
json.dump(rows, open(sys.argv[1], "w"), indent=1)
best = {}
for x in rows:
    key = (x["mpi_threads"], "step" if x["bench"] == "step" else "message of %d bytes" % x["bytes"])
    best[key] = min(best.get(key, 1e30), x.get("step_ms", x.get("ms")))
for key in sorted(best, key=lambda k: k[1]):
    print("%-12s %-28s %10.4f ms" % (*key, best[key]))
END
