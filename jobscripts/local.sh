#!/usr/bin/env bash
# local.sh RANKS VERB [ARGUMENTS...]: runs `saker VERB ...` on RANKS ranks of this machine:
#   jobscripts/local.sh 2 train -i input/quickstart.yaml
# The same line continues an interrupted run: --restart auto is the default.
set -euo pipefail                       # stop at the first mistake

ranks=${1:?usage: local.sh RANKS VERB [ARGUMENTS...]}   # MPI ranks to start
shift                                   # the rest belongs to saker
here=$(cd "$(dirname "$0")/.." && pwd)  # the top of the source tree
saker=${SAKER:-$here/build/saker}       # the program; SAKER=... names another one
[ -n "${SAKER:-}" ] || [ -x "$saker" ] || saker=saker   # after make install: the one in PATH
mpirun=${MPIRUN:-mpirun}                # the launcher; MPIRUN=... names another one

# OMP_NUM_THREADS: OpenMP and BLAS threads of a rank; without it the ranks share the cores, less an eighth for saving.
export OMPI_MCA_hwloc_base_binding_policy=none          # Open MPI 4 binds a rank to one core
export PRTE_MCA_hwloc_default_binding_policy=none       # the same for Open MPI 5
export OMPI_MCA_rmaps_base_oversubscribe=1              # allow more ranks than cores
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe  # the same for Open MPI 5
if [ "$(id -u)" = 0 ]; then                             # in a container one is root
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1   # Open MPI 4 asks for both
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1   # the same for Open MPI 5
fi

# A training stops in good order by USR1, which mpirun passes on to all ranks. After a Ctrl-C mpirun would
# give them a second only and return 1, so it runs in a process group of its own and this script
# turns the first INT or TERM into USR1; the second one ends it at once.
soft=INT                                # other verbs have nothing to save
[ "${1:-}" != train ] || soft=USR1
set -m                                  # job control: a group for each background job
# shellcheck disable=SC2086 # MPIRUN may carry options
$mpirun -np "$ranks" "$saker" "$@" </dev/null &
job=$!
set +m
# shellcheck disable=SC2317 # the trap calls it
stop() { kill -"$soft" "$job" 2>/dev/null || true; soft=TERM; }
trap stop INT TERM                      # Ctrl-C; kill
trap 'kill -USR1 $job 2>/dev/null || true' USR1
code=0
wait $job || code=$?
while kill -0 $job 2>/dev/null; do      # a trapped signal ends wait early
  wait $job || code=$?
done
wait $job 2>/dev/null && code=0 || code=$?     # bash keeps the exit code
exit $code
