#!/usr/bin/env bash
# local.sh RANKS VERB [ARGUMENTS...]: runs `saker VERB ...` on RANKS ranks of this machine:
#   jobscripts/local.sh 2 train -i input/quickstart.yaml
# The same line continues an interrupted run: --restart auto is the default.
set -euo pipefail                       # stop at the first mistake

ranks=${1:?usage: local.sh RANKS VERB [ARGUMENTS...]}   # MPI ranks to start
shift                                   # the rest belongs to saker
here=$(cd "$(dirname "$0")/.." && pwd)  # the top of the source tree
saker=${SAKER:-$here/build/saker}       # the program; SAKER=... names another one
mpirun=${MPIRUN:-mpirun}                # the launcher; MPIRUN=... names another one

cores=$(nproc)                          # cores that this shell may use
threads=$((cores / ranks))              # share them among the ranks
[ "$threads" -ge 1 ] || threads=1       # more ranks than cores: one thread each
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"   # OpenMP and BLAS threads of a rank

export OMPI_MCA_hwloc_base_binding_policy=none          # Open MPI 4 binds a rank to one core
export PRTE_MCA_hwloc_default_binding_policy=none       # the same for Open MPI 5
export OMPI_MCA_rmaps_base_oversubscribe=1              # allow more ranks than cores
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe  # the same for Open MPI 5
if [ "$(id -u)" = 0 ]; then                             # in a container one is root
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1   # Open MPI 4 asks for both
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1   # the same for Open MPI 5
fi

# exec: a signal to this script reaches mpirun, which passes USR1 on to all ranks (graceful stop).
# shellcheck disable=SC2086 # MPIRUN may carry options
exec $mpirun -np "$ranks" "$saker" "$@"
