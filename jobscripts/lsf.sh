#!/usr/bin/env bash
# LSF: DECK=my.yaml RUN=runs/my bsub < jobscripts/lsf.sh
# Written from the manual and UNTESTED on a real site: tests/jobscripts.sh runs it with a stand-in for bsub.
# As slurm.sh: the same line for every job of a run. Options on bsub's command line replace the ones below.
# Site settings: site.sh.
#
#BSUB -J saker
#BSUB -n 2
#BSUB -R "span[ptile=2]"
#BSUB -W 60
#BSUB -wa USR1
#BSUB -wt 5
#BSUB -r
#BSUB -o saker-%J.out
# -J: name in the queue. -n: MPI ranks in all, ptile: on one machine (with GPUs one per GPU, and
# -gpu "num=4:mode=shared"). -W: limit of one job in minutes, not of the run. -wa, -wt: USR1 5 minutes before the
# limit. -r: LSF may run it again after a node failure. -o: log.

set -euo pipefail                                     # stop at the first mistake
deck=${DECK:?usage: DECK=... RUN=... bsub < lsf.sh}   # what to train
run=${RUN:?usage: DECK=... RUN=... bsub < lsf.sh}     # where: the run folder (run.dir)
cd "${LS_SUBCWD:?start this script by bsub}"          # paths start where bsub was called
job=$LSB_JOBID                                        # for jobs.txt
: "${SAKER_JOBSCRIPTS:=jobscripts}"                   # where the scripts are: LSF runs a copy of this one
# shellcheck source=jobscripts/site.sh
. "${SAKER_SITE:-$SAKER_JOBSCRIPTS/site.sh}"          # the site's settings
# shellcheck source=jobscripts/job.sh
. "$SAKER_JOBSCRIPTS/job.sh"                          # one_job

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"        # threads of a rank
launch=(mpirun)                                       # an Open MPI built for LSF takes ranks and hosts from it
# launch=(jsrun -r 4 -a 1 -c 7 -g 4)                  # where there is jsrun; every rank must see all GPUs

verdict=stop rc=1                                     # if one_job does not get that far
one_job "$run" "${launch[@]}" "$saker" train -i "$deck" --set "run.dir=$run" # until done or time is up
case $verdict in                                      # what now?
done) exit 0 ;;                                       # the run is complete
stop) exit "$((rc > 0 ? rc : 1))" ;;                  # it needs a person
esac
# shellcheck disable=SC2086 # submit: several options
DECK=$deck RUN=$run bsub -w "ended($LSB_JOBID)" $submit <"$SAKER_JOBSCRIPTS/lsf.sh" # another job, after this one
