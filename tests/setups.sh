#!/usr/bin/env bash
# Setups that cannot work: each gives one message that names the cure, exit code 1, and nothing hangs. Memory that
# does not suffice is tried on every machine, the rest where there are GPUs; a program without code for their
# architecture only where SAKER_WRONG_ARCH names one.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
small_run
ok $? "data and deck"

# one DESCRIPTION PATTERN...: the last run ended with code 1 and one message, which has every pattern.
one() {
  local code=$? what=$1 bad=0 pattern
  shift
  [ $code = 1 ] && [ "$(grep -c '^saker: ' log)" = 1 ] || bad=1
  for pattern in "$@"; do grep -q -e "$pattern" log || { bad=1; echo "# missing: $pattern"; }; done
  ok $bad "$what (exit code $code)" || true
  if [ $bad = 1 ] || [ -n "${SAKER_SHOW:-}" ]; then say_log log; fi
  rm -rf run
}

# --- memory: what was to be allocated, and which keys make it less ---
# More than a process can address, so that no system gives it.
big=(--set train.global_batch=64 --set train.micro_batch=8 --set model.hidden_size=262144
  --set model.intermediate_size=16777216 --set model.num_hidden_layers=8)
for device in cpu cuda; do
  [ $device = cpu ] || nvidia-smi -L 2>/dev/null | grep -q '^GPU' || continue
  for n in 1 2; do
    ranks $n train -i deck.yaml --set run.device=$device "${big[@]}"
    one "number of ranks $n, $device: out of memory" 'out of memory on rank' 'This rank needs' 'weights ' 'optimizer state ' \
      'train.micro_batch' 'data.sequence' 'train.recompute' 'parallel.tp' '--dry-run'
  done
done

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" = 0 ]; then
  skip "GPUs hidden, shared, too few or of another kind: there is no GPU"
  finish
fi
CUDA_VISIBLE_DEVICES='' ranks 1 train -i deck.yaml --set run.device=cuda
one "GPUs are hidden" 'no GPU can be seen' 'CUDA_VISIBLE_DEVICES is empty' 'run.device: cpu'
CUDA_VISIBLE_DEVICES='' ranks 2 train -i deck.yaml --set run.device=cuda
one "GPUs are hidden from two ranks" 'no GPU can be seen' 'run.device: cpu'
ranks $((gpus + 1)) train -i deck.yaml --set run.device=auto
one "$((gpus + 1)) ranks, $gpus GPUs" "$((gpus + 1)) ranks run on" 'each needs one of its own' "Start at most $gpus rank" \
  'run.device: cpu'
# shellcheck disable=SC2086,SC2016
timeout -k 5 120 $MPIRUN -np 2 bash -c 'CUDA_VISIBLE_DEVICES=$((${OMPI_COMM_WORLD_LOCAL_RANK:-0} % '"$gpus"')) exec "$@"' _ \
  "$SAKER" train -i deck.yaml --set run.device=cuda >log 2>&1
one "each rank sees one GPU alone" '2 ranks run on .* and see 1 GPU' 'Let every rank see all GPUs' 'gpus-per-node'
if [ -n "${SAKER_WRONG_ARCH:-}" ]; then
  timeout -k 5 120 "$SAKER_WRONG_ARCH" train -i deck.yaml --set run.device=cuda >log 2>&1
  one "no code for this architecture" 'has compute capability' 'this program was compiled for' '--with-cuda-arch='
else
  skip "no code for this architecture: SAKER_WRONG_ARCH names no such program"
fi
finish
