#!/usr/bin/env bash
# Slurm: sbatch jobscripts/slurm.sh DECK RUN_FOLDER [options of saker train]
# The first job and the tenth are the same line: saker continues from the newest whole checkpoint. Before the time
# limit the run saves and stops, and the job queues itself again until the run is complete. Options on sbatch's
# command line replace the ones below: sbatch --nodes=4 --time=12:00:00 ... Site settings: site.sh.
# Tested in Slurm 22.05 with srun and mpirun (tests/slurm*.sh).
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
# With GPUs add --gpus-per-node=4 and set gpus=4 in site.sh: every rank must see all GPUs of its node.

set -euo pipefail                                     # stop at the first mistake
deck=${1:?usage: sbatch slurm.sh DECK RUN_FOLDER}     # what to train
run=${2:?usage: sbatch slurm.sh DECK RUN_FOLDER}      # where: the run folder (run.dir)
shift 2                                               # the rest goes to saker train
cd "${SLURM_SUBMIT_DIR:?start this script by sbatch}" # paths start where sbatch was called
job=$SLURM_JOB_ID                                     # for jobs.txt
if [ -z "${SAKER_JOBSCRIPTS:-}" ]; then               # Slurm runs a copy of this script: where is
  SAKER_JOBSCRIPTS=$(scontrol show job "$job" | sed -n 's|^ *Command=\(.*\)/slurm\.sh.*|\1|p') # the original?
  export SAKER_JOBSCRIPTS                             # a job that follows starts from there
fi
# shellcheck source=jobscripts/site.sh
. "${SAKER_SITE:-$SAKER_JOBSCRIPTS/site.sh}"          # the site's settings
# shellcheck source=jobscripts/job.sh
. "$SAKER_JOBSCRIPTS/job.sh"                          # one_job

cpus=${SLURM_CPUS_PER_TASK:-1}                        # cores of a rank
export OMP_NUM_THREADS=$((cpus - cpus / 8))           # its threads; of 8 cores and more, saving needs an eighth
export OMP_PLACES=cores OMP_PROC_BIND=close           # each on a core of its own, near its rank
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # newer srun does not take it from the job

if [ "$launcher" = auto ]; then                       # srun if it speaks the PMIx that Open MPI
  srun --mpi=list 2>&1 | grep -q pmix && launcher=srun || launcher=mpirun # was built with
fi
if [ "$launcher" = srun ]; then                       # srun:
  launch=(srun --mpi=pmix --kill-on-bad-exit=1)       # one failing rank ends the whole step
  [ -z "$gpus" ] || launch+=("--gpus-per-node=$gpus" --gpu-bind=none) # all GPUs for every rank
else                                                  # mpirun:
  launch=(mpirun)                                     # ranks and nodes come from the job
fi

verdict=stop rc=1                                     # if one_job does not get that far
one_job "$run" "${launch[@]}" "$saker" train -i "$deck" --set "run.dir=$run" "$@" # until done or time is up
case $verdict in                                      # what now?
done | asked) exit 0 ;;                               # complete, or ended by RUN/STOP
stop) exit "$((rc > 0 ? rc : 1))" ;;                  # it needs a person
esac
if [ "$again" = follow ]; then                        # another job, with its own number and log:
  # shellcheck disable=SC2086 # submit: several options
  sbatch $submit "$SAKER_JOBSCRIPTS/slurm.sh" "$deck" "$run" "$@" # starts as soon as there is room
else                                                  # or this one once more, with all its options:
  scontrol requeue "$SLURM_JOB_ID"                    # starts in 2 minutes
fi
