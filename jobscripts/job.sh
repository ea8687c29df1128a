# shellcheck shell=bash disable=SC2154,SC2034
# job.sh: what all job scripts do: one job of a run, and the decision what comes next. Sourced after site.sh.
# RUN/jobs.txt gets a line for every job: date, job, newest checkpoint before and after, exit code, decision.

# newest RUN: the step of the newest checkpoint, 0 before there is one.
newest() {
  find "$1/checkpoints" -maxdepth 1 -name 'step-*' ! -name '*.*' 2>/dev/null |  # whole ones only
    sed 's/.*step-0*//; s/^$/0/' | sort -n | tail -1 | grep . || echo 0         # their numbers, the largest
}
# state RUN: running, incomplete, complete or failed, as status.json says; nothing before the first job.
state() {
  sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$1/status.json" 2>/dev/null || true # there may be no such file
}
# stuck RUN: how many jobs in a row, up to the latest, have not brought a new checkpoint.
stuck() {
  awk '{ n = $4 > $3 ? 0 : n + 1 } END { print n + 0 }' "$1/jobs.txt"           # columns 3, 4: before, after
}

# one_job RUN COMMAND...: runs the command (the launcher with saker train) and passes USR1 and TERM on to it.
# Afterwards $verdict is done, again or stop, $rc the exit code, and $asked not empty if there was such a signal.
one_job() {
  local run=$1 before pid                                # the run folder; where it stands; the launcher
  shift                                                  # the rest is the command
  asked=                                                 # no signal yet
  mkdir -p "$run"                                        # saker would make it as well
  before=$(newest "$run")                                # what earlier jobs have left
  "$@" &                                                 # beside this shell, which listens to signals meanwhile
  pid=$!                                                 # the launcher
  trap 'asked=1; kill -USR1 $pid 2>/dev/null || true' USR1 TERM INT # time is nearly up: save and stop
  rc=0                                                   # its exit code
  wait $pid || rc=$?                                     # until it ends, or until a signal
  while [ $rc -gt 128 ] && kill -0 $pid 2>/dev/null; do  # it was a signal to this shell:
    rc=0                                                 # not the launcher's code
    wait $pid || rc=$?                                   # wait on
  done
  wait $pid 2>/dev/null && rc=0 || rc=$?                 # bash keeps the code of a child that has ended
  trap - USR1 TERM INT                                   # back to normal
  decide "$run" "$before"                                # what comes next
}

# decide RUN BEFORE: sets $verdict from $rc and the run folder, and writes the line in jobs.txt.
decide() {
  local run=$1 after now                                 # the folder, the newest checkpoint, the state
  after=$(newest "$run")                                 # what this job has left
  now=$(state "$run")                                    # what saker says
  verdict=again                                          # most often there is more to do
  [ "$rc$now" != 0complete ] || verdict="done"           # but not when all steps are done
  [ "$rc" != 2 ] || verdict=stop                         # a wrong deck does not get better by itself
  printf '%s %s %s %s %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${job:-local}" "$2" "$after" "$rc" \
    "$verdict" >>"$run/jobs.txt"                         # for people, and for stuck
  if [ $verdict = again ] && [ "$(stuck "$run")" -ge "$tries" ]; then # a crash loop:
    echo "job.sh: $tries jobs in a row brought no new checkpoint; see $run/run.log and $run/jobs.txt" # say so
    verdict=stop                                         # and leave the queue to others
  fi
  echo "job.sh: exit code $rc, state ${now:-none}, checkpoints up to step $after: $verdict" # in the job's log
}
