#!/usr/bin/env bash
# sanitize.sh [DEVICE_TEST]: compute-sanitizer's racecheck and memcheck on every trial of every op of tests/device.1, in
# both types, four at a time. One line for each; a run that is cut off or has fewer trials than the plain one fails.
# For a machine with a GPU: `make check-sanitizer`. SSD backward and fp32 attention take minutes under racecheck.
# SANITIZER_SECONDS: of one run at most (1800).
set -u
device=$(realpath "${1:-${SAKER_BUILDDIR:-.}/tests/device.1}")
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
limit=${SANITIZER_SECONDS:-1800} most=1000000000000 # elements of a trial: no limit
groups=("ssd_grad" "ssd ssd_state ssd_state_grad" "attention attention_grad" "conv conv_grad"
  "rmsnorm rmsnorm_grad rope dt dt_grad swiglu swiglu_grad" "gate gate_grad gate_stats gate_grad_stats"
  "xent_stats xent_merge xent_grad embed embed_grad bias bias_grad add, sum sqnorm adamw fade_add")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$sanitizer" --version >/dev/null || exit 1

# one TOOL TYPE OPS...: a line in $out; memcheck leaves out what the CUDA functions return, for one test asks for 2^50 bytes.
one() {
  local tool=$1 type=$2 start=$SECONDS log want got rc=0 more=() verdict=ok
  shift 2
  log=$(mktemp "$out/log.XXXXXX")
  want=$("$device" $most "$type" "$@" | grep -c '^ok ')
  [ "$tool" = racecheck ] || more=(--report-api-errors no)
  timeout -k 5 "$limit" "$sanitizer" --tool "$tool" "${more[@]}" --error-exitcode 9 "$device" $most "$type" "$@" >"$log" 2>&1 || rc=$?
  got=$(grep -c '^ok ' "$log")
  if [ $rc != 0 ] || [ "$want" = 0 ] || [ "$got" != "$want" ]; then verdict="not ok"; fi
  echo "$verdict - $tool $type $*: $got of $want trials, exit code $rc, $((SECONDS - start)) s" | tee -a "$out/lines"
  [ "$verdict" = ok ] || grep -E '^(not ok|=========)' "$log" | head -20
}

for tool in racecheck memcheck; do
  for type in bf16 fp32; do
    for ops in "${groups[@]}"; do
      while [ "$(jobs -rp | wc -l)" -ge 4 ]; do wait -n; done
      # shellcheck disable=SC2086 # several ops
      one $tool $type $ops &
    done
  done
done
# Whether the groups name every op: gemm is the library's.
want=$("$device" | grep -E '^ok [0-9]+ - (fp32|bf16) .*: errors' | grep -cvE '(fp32|bf16) gemm ')
wait
got=$(sed -nE 's/.* - racecheck .*: [0-9]+ of ([0-9]+) trials.*/\1/p' "$out/lines" | awk '{n += $1} END {print n + 0}')
verdict=ok
if [ "$want" = 0 ] || [ "$got" != "$want" ]; then verdict="not ok"; fi
echo "$verdict - every op is in a group: $got of $want trials" | tee -a "$out/lines"
failed=$(grep -c '^not ok' "$out/lines")
echo "$(grep -c '^ok' "$out/lines") passed, $failed failed"
[ "$failed" = 0 ]
