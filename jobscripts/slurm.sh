#!/usr/bin/env bash
# Slurm: sbatch jobscripts/slurm.sh DECK RUN_FOLDER [options of saker train]
# The first job and the tenth are the same line: saker continues from the newest whole checkpoint.
# Before the time limit the run saves and stops, and the job queues itself again until the run is
# complete. Options on sbatch's command line replace the ones below: sbatch --nodes=4 --time=12:00:00
#
#SBATCH --job-name=saker              # name in the queue
#SBATCH --nodes=1                     # machines
#SBATCH --ntasks-per-node=2           # MPI ranks on each; with GPUs: one per GPU
#SBATCH --cpus-per-task=1             # cores of a rank: OpenMP and BLAS threads
#SBATCH --time=01:00:00               # limit of one job, not of the run
#SBATCH --signal=B:USR1@300           # USR1 to this script 300 s before the limit; Slurm may be
#                                     # 30 s late: allow two checkpoints' time and 90 s
#SBATCH --requeue                     # the job may be queued again, by us or after a node failure
#SBATCH --open-mode=append            # and then adds to the same log
#SBATCH --output=%x-%j.out            # job name and number
# With GPUs add --gpus-per-node=4 --gpu-bind=none: every rank must see all GPUs of its node.

set -euo pipefail                                     # stop at the first mistake
deck=${1:?usage: sbatch slurm.sh DECK RUN_FOLDER}     # what to train
run=${2:?usage: sbatch slurm.sh DECK RUN_FOLDER}      # where: the run folder (run.dir)
shift 2                                               # the rest goes to saker train
cd "${SLURM_SUBMIT_DIR:?start this script by sbatch}" # paths start where sbatch was called
# shellcheck source=/dev/null
. "${SAKER_SITE_ENV:-/dev/null}"                      # a site's own modules and variables
saker=${SAKER:-build/saker}                           # the program; where it was not built,
[ -n "${SAKER:-}" ] || [ -x "$saker" ] || saker=saker # the installed one in PATH

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"    # threads of a rank
export OMP_PLACES=cores OMP_PROC_BIND=close           # each on a core of its own, near its rank
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # newer srun does not take it from the job

# srun if it speaks the PMIx that Open MPI was built with, else mpirun, which asks Slurm for nodes.
if srun --mpi=list 2>&1 | grep -q pmix; then
  launch=(srun --mpi=pmix --kill-on-bad-exit=1)       # one failing rank ends the whole step
else
  launch=(mpirun)                                     # ranks and nodes come from the job
fi

# value KEY: from status.json, the state or the step of the run; nothing before the first job.
value() {
  sed -n "s/.*\"$1\": *\"\{0,1\}\([a-z0-9]*\).*/\1/p" "$run/status.json" 2>/dev/null | head -1
}
before=$(value step) || before=                       # steps done by earlier jobs

"${launch[@]}" "$saker" train -i "$deck" --set "run.dir=$run" "$@" &  # beside this shell,
pid=$!                                                # which listens to signals meanwhile
trap 'kill -USR1 $pid 2>/dev/null || true' USR1       # time is nearly up: save and stop
rc=0
wait $pid || rc=$?                                    # the end of the run, or a signal
while [ $rc -gt 128 ] && kill -0 $pid 2>/dev/null; do # a signal: wait on
  rc=0
  wait $pid || rc=$?
done
[ $rc -eq 0 ] || { echo "slurm.sh: saker ended with exit code $rc"; exit $rc; }  # see the log above

case $(value state) in
complete) echo "slurm.sh: the run is complete" ;;     # nothing more to do
incomplete)                                           # stopped in time: go on in the next job
  if [ "$(value step)" = "${before:-0}" ]; then       # unless this job got nowhere
    echo "slurm.sh: no step was made in this job: is the time limit too short?"
    exit 1
  fi
  echo "slurm.sh: stopped at step $(value step), queueing the job again"
  scontrol requeue "$SLURM_JOB_ID" ;;                 # same options; starts in 2 minutes
*) echo "slurm.sh: $run/status.json says neither complete nor incomplete"; exit 1 ;;
esac
