#!/usr/bin/env bash
# What a step does not do on GPUs: it allocates nothing, makes no streams or events, and how often its host waits for
# the GPU does not depend on the number of micro-batches (the loss and the norms are read once a step). The
# transport mpi has waits of its own. Counted by a preloaded library, from the difference of two lengths of a run.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" = 0 ]; then
  skip "there is no GPU"
  finish
fi
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
small_run && grid_deck && ${CC:-cc} -O1 -shared -fPIC -o calls.so "$SAKER_SRCDIR/tests/cuda_calls.c" -ldl
ok $? "data, deck and the library that counts"

# count STEPS RANKS OPTIONS...: "allocations creations waits", the most of any rank.
count() {
  local steps=$1 n=$2
  shift 2
  rm -rf run
  # shellcheck disable=SC2086
  timeout -k 5 120 $MPIRUN -np "$n" env LD_PRELOAD="$dir/calls.so" "$SAKER" train -i deck.yaml --set run.device=cuda \
    --set 'data.valid=[]' --set train.steps="$steps" --set checkpoint.every=1000 "$@" >log 2>&1 || return 1
  grep -o 'cuda calls: .*' log | awk -v n="$n" '{ for (i = 3; i < 6; i++) if ($i > m[i]) m[i] = $i }
    END { if (NR != n) exit 1; print m[3], m[4], m[5] }'
}

# audit NAME RANKS OPTIONS...
audit() {
  local name=$1 n=$2 waits=() batch a='' b=''
  shift 2
  for batch in 12 24; do
    a=$(count 6 "$n" --set train.global_batch=$batch "$@") && b=$(count 12 "$n" --set train.global_batch=$batch "$@")
    ok $? "$name: 6 and 12 steps of $batch sequences: $a, $b" || true
    [ -n "$b" ] || { say_log log; return; }
    [ -n "$a" ] && [ "${a% *}" = "${b% *}" ]
    ok $? "$name: six more steps allocate nothing and make no stream or event"
    waits+=($((${b##* } - ${a##* })))
  done
  if [[ $name = *mpi* ]]; then
    echo "# ${waits[*]} waits in 6 steps of 12 and 24 micro-batches"
  else
    [ "${waits[0]}" -gt 0 ] && [ "${waits[0]}" = "${waits[1]}" ]
    ok $? "$name: six steps wait ${waits[0]} times for the GPU with 12 micro-batches, ${waits[1]} times with 24"
  fi
}
audit "one GPU" 1
if [ "$gpus" -lt 2 ]; then
  skip "there are no two GPUs"
  finish
fi
audit "tp 2" 2 --set parallel.tp=2
# Parts of 4 MiB, which go by the copy engines.
audit "tp 2, large parts" 2 --set parallel.tp=2 --set model.hidden_size=1024 --set data.sequence=4096 --set train.dtype=bf16
audit "cp 2" 2 --set parallel.cp=2
audit "dp 2" 2
audit "pp 2, ipc" 2 --set parallel.pp=2 --set parallel.transport=ipc
audit "pp 2, ipc, zb-h1" 2 --set parallel.pp=2 --set parallel.transport=ipc --set parallel.schedule=zb-h1
audit "pp 2, nccl" 2 --set parallel.pp=2 --set parallel.transport=nccl
audit "pp 2, mpi" 2 --set parallel.pp=2 --set parallel.transport=mpi
finish
