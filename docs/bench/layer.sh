#!/usr/bin/env bash
# One layer of the 0.5B shape, fp32, T = 1024, on two cores of this machine: Saker and Hugging Face's transformers in
# turn, three times. Every line of FILE is one measurement.
#   docs/bench/layer.sh [-o FILE] [-r 'COMMAND IN FRONT'] PYTHON [SAKER]
# PYTHON has torch and transformers. On a busy machine -r 'chrt -f 1' (as root) gives both programs the cores.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=/dev/stdout run=
while getopts o:r: o; do
  case $o in
  o) out=$OPTARG ;;
  r) run=$OPTARG ;;
  *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
python=${1:?give a Python with torch and transformers}
saker=${2:-$here/../../build/saker}
config=$here/../../input/falcon-h1-0.5b.json
export OMP_NUM_THREADS=2 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
json=$(mktemp)
trap 'rm -f "$json"' EXIT
for _ in 1 2 3; do
  # shellcheck disable=SC2086 # a command with its arguments
  $run taskset -c 0,1 "$saker" bench layer -i "$here/../../input/bench.yaml" --set "model.hf_config=$config" \
    --set data.sequence=1024 --set train.micro_batch=1 --set train.global_batch=1 --set train.dtype=fp32 \
    --repeat 5 --warmup 1 --json "$json" >/dev/null
  python3 -c 'import json, sys
r = {x["pass"]: x for x in json.load(open(sys.argv[1]))}
f, b = r["fwd"], r["fwd+bwd"]
print(json.dumps({"program": "saker " + f["commit"], "device": f["device"], "sequence": 1024,
                  "fwd_ms": round(f["ms"], 1), "fwd_bwd_ms": round(b["ms"], 1)}))' "$json"
  # shellcheck disable=SC2086
  $run taskset -c 0,1 "$python" "$here/hf_layer.py" "$config" --repeat 5 2>/dev/null
done >"$out"
