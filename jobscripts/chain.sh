#!/usr/bin/env bash
# chain.sh RANKS DECK RUN_FOLDER [options of saker train]: without a batch system, one job after the other until the
# run is complete: after a stop by --max-time and after a crash. INT, TERM or USR1: save, stop, no further job.
#   jobscripts/chain.sh 2 my.yaml runs/my --max-time 1:00:00
# It gives up when several jobs in a row (tries in site.sh) bring no new checkpoint.
set -euo pipefail                                     # stop at the first mistake
ranks=${1:?usage: chain.sh RANKS DECK RUN_FOLDER}     # MPI ranks
deck=${2:?usage: chain.sh RANKS DECK RUN_FOLDER}      # what to train
run=${3:?usage: chain.sh RANKS DECK RUN_FOLDER}       # where: the run folder (run.dir)
shift 3                                               # the rest goes to saker train
here=$(cd "$(dirname "$0")" && pwd)                   # the folder of the job scripts
# shellcheck source=jobscripts/site.sh
. "${SAKER_SITE:-$here/site.sh}"                      # the site's settings
# shellcheck source=jobscripts/job.sh
. "$here/job.sh"                                      # one_job

export SAKER=$saker                                   # the program, for local.sh
job=local-$$                                          # for jobs.txt
asked='' verdict=again                                # nobody wants it to end; there is something to do
while [ $verdict = again ] && [ -z "$asked" ]; do     # job after job
  one_job "$run" "$here/local.sh" "$ranks" train -i "$deck" --set "run.dir=$run" "$@" # until done or time is up
done
[ $verdict != stop ] || exit "$((rc > 0 ? rc : 1))"   # it needs a person
