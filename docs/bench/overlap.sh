#!/usr/bin/env bash
# Two GPUs against one, by every axis: tp on layers of the 7B shape, cp on one sequence of 65,536 tokens, pp with 16
# micro-batches, dp at 0.5B with as much for each GPU as one has alone. A table, and FILE: the list of all results.
#   docs/bench/overlap.sh [-o FILE] [-b 'REPEAT AND WARMUP'] [AXES]
# AXES: of tp cp pp dp (all). SAKER and MPIRUN name the program and the launcher.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=overlap.json bench='--repeat 5 --warmup 2'
while getopts o:b: o; do
  case $o in
  o) out=$OPTARG ;;
  b) bench=$OPTARG ;;
  *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- tp cp pp dp
saker=${SAKER:-build/saker}
mpirun=${MPIRUN:-mpirun --bind-to none}
input=${INPUT:-$(realpath --relative-to=. "$here/../../input")}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# Four layers of 7B with a small vocabulary: what many GPUs share of the whole model.
layers7b=(model.hf_config="$input/falcon-h1-7b.json" model.num_hidden_layers=4 model.vocab_size=8192)
half=(model.hf_config="$input/falcon-h1-0.5b.json" data.sequence=4096)
declare -A one=(
  [tp]="${layers7b[*]} data.sequence=4096 train.micro_batch=4 train.global_batch=4"
  [cp]="${layers7b[*]} data.sequence=65536 train.micro_batch=1 train.global_batch=1"
  [pp]="${half[*]} train.micro_batch=1 train.global_batch=16"
  [dp]="${half[*]} train.micro_batch=4 train.global_batch=8"
)
interleaved="parallel.pp=2 parallel.schedule=interleaved parallel.virtual_stages=2"

# run NAME RANKS KEYS...
run() {
  local name=$1 ranks=$2 key set=()
  shift 2
  for key; do set+=(--set "$key"); done
  # shellcheck disable=SC2086 # commands with their arguments
  if ! $mpirun -np "$ranks" "$saker" bench step -i "$input/bench.yaml" $bench "${set[@]}" --json "$dir/$name.json" \
    >"$dir/log" 2>&1; then
    cat "$dir/log" >&2
    exit 1
  fi
  grep -A8 '^exchange ' "$dir/log" || true
}

for axis; do
  # shellcheck disable=SC2086 # keys
  {
    run "$axis-1" 1 ${one[$axis]}
    case $axis in
    dp) run dp-2 2 ${one[dp]} train.global_batch=16 ;;
    pp)
      run pp-2 2 ${one[pp]} parallel.pp=2
      run pp-2i 2 ${one[pp]} $interleaved
      ;;
    *) run "$axis-2" 2 ${one[$axis]} "parallel.$axis=2" ;;
    esac
  }
done

python3 - "$out" "$dir" "$@" <<'PY'
import json, pathlib, sys
out, folder, axes = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
results = []
for axis in axes:
    one = json.loads((folder / f"{axis}-1.json").read_text())[0]
    results.append(dict(one, case=f"{axis}-1"))
    for path in sorted(folder.glob(f"{axis}-2*.json")):
        two = json.loads(path.read_text())[0]
        two.update(case=path.stem, speedup=round(two["tokens_per_s"] / one["tokens_per_s"], 3))
        results.append(two)
        print(f"{path.stem:6} {one['tokens_per_s']:10,.0f} -> {two['tokens_per_s']:10,.0f} tokens/s, "
              f"{two['speedup']:.3f} x one GPU; {two['step_ms']:.1f} ms, without overlap {two['no_overlap_step_ms']:.1f} ms")
for r in results:
    r.pop("ops", None)
with open(out, "w") as f:
    json.dump(results, f, indent=1)
    f.write("\n")
PY
