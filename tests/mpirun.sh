#!/usr/bin/env bash
# Runs one test: PROGRAM.N under mpirun on N ranks, SCRIPT.sh under bash. Also usable by hand:
#   tests/mpirun.sh build/tests/golden.1
# A test that takes longer than TEST_TIMEOUT seconds is stopped and fails: a hang is a failure.
set -u
prog=$1
shift
SAKER_SRCDIR=${SAKER_SRCDIR:-$(cd "$(dirname "$0")/.." && pwd)}
SAKER_GOLDEN_DIR=${SAKER_GOLDEN_DIR:-$SAKER_SRCDIR/tests/ref}
MPIRUN=${MPIRUN:-mpirun}
export SAKER_SRCDIR SAKER_GOLDEN_DIR MPIRUN

# More ranks than cores, no binding (they would share core 0), root allowed: for Open MPI 4, then 5.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export PRTE_MCA_hwloc_default_binding_policy=none
export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Waiting ranks hand their core to the working ones.
export OMPI_MCA_mpi_yield_when_idle=1

case $prog in
*.sh)
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  exec timeout -k 10 "${TEST_TIMEOUT:-600}" bash "$prog" "$@" ;;
*.[1-9] | *.[1-9][0-9])
  ranks=${prog##*.}
  [ "$ranks" -gt 1 ] && threads=1 || threads=2
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
  # shellcheck disable=SC2086 # MPIRUN may carry options
  exec timeout -k 10 "${TEST_TIMEOUT:-300}" $MPIRUN -np "$ranks" "$prog" "$@" ;;
*)
  echo "$0: $prog: the name must end in .sh or in its number of ranks" >&2
  exit 99 ;;
esac
