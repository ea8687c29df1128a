#!/usr/bin/env bash
# Flux: flux batch jobscripts/flux.sh DECK RUN_FOLDER [options of saker train]
# Written from the manual and UNTESTED on a real site: tests/jobscripts.sh runs it with a stand-in for flux.
# As slurm.sh: the same line for every job of a run. Options on flux batch's command line replace the ones below.
# Site settings: site.sh.
#
# flux: --job-name=saker
# flux: --nodes=1
# flux: --nslots=2
# flux: --cores-per-slot=1
# flux: --time-limit=1h
# flux: --signal=USR1@5m
# flux: --output=saker-{{id}}.out
# job-name: in the queue. nodes: machines; nslots: MPI ranks in all, cores-per-slot: cores of a rank (with GPUs one
# rank per GPU, and --gpus-per-slot=1). time-limit: of one job, not of the run. signal: USR1 to this script 5
# minutes before the limit. output: log.

set -euo pipefail                                     # stop at the first mistake
deck=${1:?usage: flux batch flux.sh DECK RUN_FOLDER}  # what to train
run=${2:?usage: flux batch flux.sh DECK RUN_FOLDER}   # where: the run folder (run.dir)
shift 2                                               # the rest goes to saker train
job=${FLUX_JOB_ID:-flux}                              # for jobs.txt
: "${SAKER_JOBSCRIPTS:=jobscripts}"                   # where the scripts are: Flux runs a copy of this one
# shellcheck source=jobscripts/site.sh
. "${SAKER_SITE:-$SAKER_JOBSCRIPTS/site.sh}"          # the site's settings
# shellcheck source=jobscripts/job.sh
. "$SAKER_JOBSCRIPTS/job.sh"                          # one_job

slots=${SAKER_RANKS:-$(flux resource list -n -s up -o '{ncores}')} # ranks: as many as the job has cores, or as said
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"        # threads of a rank
launch=(flux run -n "$slots" -o mpi=pmix)             # Open MPI speaks PMIx with Flux
launch+=(-o gpu-affinity=off)                         # every rank sees all GPUs of its node

verdict=stop rc=1                                     # if one_job does not get that far
one_job "$run" "${launch[@]}" "$saker" train -i "$deck" --set "run.dir=$run" "$@" # until done or time is up
case $verdict in                                      # what now?
done) exit 0 ;;                                       # the run is complete
stop) exit "$((rc > 0 ? rc : 1))" ;;                  # it needs a person
esac
# shellcheck disable=SC2086 # submit: several options
flux --parent batch --dependency="afterany:$job" $submit "$SAKER_JOBSCRIPTS/flux.sh" "$deck" "$run" "$@" # another job
