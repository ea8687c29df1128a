#!/usr/bin/env bash
# PBS (OpenPBS, PBS Pro): qsub -v DECK=my.yaml,RUN=runs/my jobscripts/pbs.sh
# Written from the manual and UNTESTED on a real site: tests/jobscripts.sh runs it with stand-ins for qsub and qstat.
# As slurm.sh: the same line for every job of a run. PBS sends no signal before the limit, so saker is told the
# time. Options on qsub's command line replace the ones below. Site settings: site.sh.
#
#PBS -N saker
#PBS -l select=1:ncpus=2:mpiprocs=2:ompthreads=1
#PBS -l walltime=01:00:00
#PBS -j oe
#PBS -r y
# -N: name in the queue. select: machines; ncpus: cores, mpiprocs: MPI ranks on each (with GPUs one per GPU, and
# ngpus=4), ompthreads: threads of a rank. walltime: limit of one job, not of the run. -j oe: one log.
# -r y: PBS may run it again after a node failure.

set -euo pipefail                                     # stop at the first mistake
deck=${DECK:?usage: qsub -v DECK=...,RUN=... pbs.sh}  # what to train
run=${RUN:?usage: qsub -v DECK=...,RUN=... pbs.sh}    # where: the run folder (run.dir)
cd "${PBS_O_WORKDIR:?start this script by qsub}"      # paths start where qsub was called
job=$PBS_JOBID                                        # for jobs.txt
: "${SAKER_JOBSCRIPTS:=jobscripts}"                   # where the scripts are: PBS runs a copy of this one
# shellcheck source=jobscripts/site.sh
. "${SAKER_SITE:-$SAKER_JOBSCRIPTS/site.sh}"          # the site's settings
# shellcheck source=jobscripts/job.sh
. "$SAKER_JOBSCRIPTS/job.sh"                          # one_job

limit=$(qstat -f "$PBS_JOBID" | sed -n 's/.*Resource_List.walltime = *//p') # the limit as PBS has it, HH:MM:SS
options=()                                            # more options for saker
[ -z "$limit" ] || options+=(--max-time "$limit")     # it saves and stops in time
launch=(mpirun --hostfile "$PBS_NODEFILE")            # one line per rank; an Open MPI built for PBS ignores it

verdict=stop rc=1                                     # if one_job does not get that far
one_job "$run" "${launch[@]}" "$saker" train -i "$deck" --set "run.dir=$run" "${options[@]}" # until done or time is up
case $verdict in                                      # what now?
done) exit 0 ;;                                       # the run is complete
stop) exit "$((rc > 0 ? rc : 1))" ;;                  # it needs a person
esac
# shellcheck disable=SC2086 # submit: several options
qsub -W "depend=afterany:$PBS_JOBID" -v "DECK=$deck,RUN=$run,SAKER_JOBSCRIPTS=$SAKER_JOBSCRIPTS" $submit \
  "$SAKER_JOBSCRIPTS/pbs.sh"                          # another job, when this one has ended
