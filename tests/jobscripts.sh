#!/usr/bin/env bash
# The job scripts without a batch system: the chain of local jobs for real (stopped by --max-time, killed, in a
# crash loop), the scripts for PBS, LSF and Flux with stand-ins for their commands. Slurm: tests/slurm.sh.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(realpath "$(mktemp -d)")
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
scripts=$SAKER_SRCDIR/jobscripts

for script in "$scripts"/*.sh; do bash -n "$script" || echo "$script" >>wrong; done
[ ! -e wrong ]
ok $? "bash -n on all job scripts"
if command -v shellcheck >/dev/null; then
  (cd "$SAKER_SRCDIR" && shellcheck -x -S info jobscripts/*.sh) >log
  ok $? "shellcheck on all job scripts" || say_log log
else
  skip "shellcheck is not installed"
fi
# shellcheck disable=SC2016 # a pattern
grep -hn -v -E '#|^ *(fi|esac|done|})?$|\\$|^[a-z_]*\(\) \{$' "$scripts"/{slurm,pbs,lsf,flux,chain,job,site}.sh >log
[ ! -s log ]
ok $? "every line has its comment" || say_log log

# --- a chain of local jobs ---
small_run && sed -i 's/kind: cosine/kind: constant/; s/, valid: \[[^]]*\]//' deck.yaml
ok $? "data and deck"
steps=400
set -- --set train.steps=$steps --set checkpoint.every=6
begin=$SECONDS
ranks 2 train -i deck.yaml --set run.dir=straight "$@"
ok $? "a straight run of $steps steps"
limit=$(((SECONDS - begin + 2) / 3)) # seconds for a job: a third of it, however fast the machine is
unset SAKER_SITE SAKER_TRIES
"$scripts"/chain.sh 2 deck.yaml "$dir/run" "$@" --max-time "$limit" >chain.log 2>&1 &
chain=$!
killed=0
for _ in $(seq 3000); do # in a job after the first, when it has got on; however fast or slow the machine is
  jobs=$(wc -l 2>/dev/null <run/jobs.txt) || jobs=0
  if [ "$jobs" -ge 1 ] && [ "$(tail -1 run/metrics.jsonl | sed -n 's/^{"step": \([0-9]*\),.*/\1/p' | grep . || echo 0)" -gt \
    "$(awk 'END { print $4 + 1 }' run/jobs.txt)" ]; then
    for p in /proc/[0-9]*; do
      tr '\0' ' ' 2>/dev/null <"$p/cmdline" | grep -qs "^$SAKER train.*run.dir=$dir/run " && kill -9 "${p#/proc/}" && killed=1 && break 2
    done
  fi 2>/dev/null
  kill -0 $chain 2>/dev/null || break
  sleep 0.02
done
[ $killed = 1 ]
ok $? "a rank of a later job is killed"
wait $chain
ok $? "the chain ends with exit code 0" || say_log chain.log
sed 's/^/# /' run/jobs.txt
awk '{ n++; bad += $5 != 0; last = $6 } END { exit !(n >= 3 && bad == 1 && last == "done") }' run/jobs.txt
ok $? "it took $(wc -l <run/jobs.txt) jobs, one of them failed"
[ "$(steps run)" = "$(steps straight)" ] && [ "$(steps run | wc -l)" = $steps ]
ok $? "all $steps losses are those of the straight run, digit for digit"
hashes() { # of a checkpoint's datasets (the files differ in the run's id)
  tr -d '\n' <"$1/checkpoints/step-$(printf %08d $steps)/manifest.json" |
    grep -o '"name": *"[mvp][^"]*/[^"]*"\|"start"[^}]*"sum64": *"[0-9a-f]*"' | tr -d ' '
}
same_data() {
  hashes "$1" >a.txt
  hashes "$2" >b.txt
  [ "$(grep -c sum64 a.txt)" -ge 60 ] && cmp a.txt b.txt
}
same_data run straight >log 2>&1
ok $? "and the last checkpoint has the same weights and optimizer state" || say_log log

"$scripts"/chain.sh 2 deck.yaml "$dir/asked" "$@" --set train.steps=100000 >chain.log 2>&1 &
chain=$!
for _ in $(seq 600); do
  grep -q '"step": *5,' asked/metrics.jsonl 2>/dev/null && break
  sleep 0.02
done
kill -TERM $chain
wait $chain
[ $? = 0 ] && grep -q '"state": *"incomplete"' asked/status.json && [ "$(wc -l <asked/jobs.txt)" = 1 ]
ok $? "TERM: the job saves and stops, and no other one begins" || say_log chain.log

"$scripts"/chain.sh 2 deck.yaml "$dir/file" "$@" --set train.steps=100000 >chain.log 2>&1 &
chain=$!
for _ in $(seq 600); do
  grep -q '"step": *5,' file/metrics.jsonl 2>/dev/null && break
  sleep 0.02
done
touch file/STOP
wait $chain
[ $? = 0 ] && [ "$(awk '{ print $5 $6 }' file/jobs.txt)" = 0asked ]
ok $? "the file STOP: likewise" || say_log chain.log

cat >dies <<'EOT'
#!/bin/sh
exit 1
EOT
chmod +x dies
SAKER=$dir/dies "$scripts"/chain.sh 1 deck.yaml "$dir/loop" >log 2>&1
[ $? = 1 ] && grep -q '3 jobs in a row' log && [ "$(wc -l <loop/jobs.txt)" = 3 ]
ok $? "a crash loop ends after 3 jobs without a checkpoint" || say_log log
SAKER=$SAKER "$scripts"/chain.sh 1 deck.yaml "$dir/wrong_deck" --set train.steps=x >log 2>&1
[ $? = 2 ] && [ "$(wc -l <wrong_deck/jobs.txt)" = 1 ]
ok $? "a wrong deck is not tried again" || say_log log

# --- PBS, LSF, Flux: stand-ins note how they are called; the launcher drops its own options and runs the program ---
mkdir bin
for tool in qsub bsub flux mpirun qstat; do
  cat >bin/$tool <<'EOT'
#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
case ${0##*/} in
qstat) echo "    Resource_List.walltime = 00:30:00" ;;
mpirun) while [ "${1##*/}" != program ]; do shift; done && exec "$@" ;;
flux)
  [ "$1" != resource ] || { echo 4; exit; }
  [ "$1" != run ] || { while [ "${1##*/}" != program ]; do shift; done && exec "$@"; } ;;
esac
EOT
done
# A program that stops in time in its first job and completes in its second.
cat >bin/program <<'EOT'
#!/bin/bash
echo "program $*" >>"$CALLS"
n=$(ls "$RUN/checkpoints" 2>/dev/null | wc -l)
mkdir -p "$RUN/checkpoints/step-0000001$n"
[ "$n" = 0 ] && state=incomplete || state=complete
echo "{\"state\": \"$state\"}" >"$RUN/status.json"
EOT
chmod +x bin/*
export CALLS=$dir/calls SAKER=$dir/bin/program SAKER_JOBSCRIPTS=$scripts
site() { # site NAME COMMAND...: two jobs by the batch script
  local name=$1
  shift
  : >calls
  for _ in 1 2; do
    PATH=$dir/bin:$PATH RUN=run_$name "$@" >>"$name.log" 2>&1 || return 1
  done
}
called() { grep -q -e "$1" calls; }
export DECK=d.yaml
PBS_O_WORKDIR=$dir PBS_JOBID=7.pbs PBS_NODEFILE=nodes site pbs bash "$scripts/pbs.sh"
ok $? "pbs.sh: two jobs" || say_log pbs.log
called '^mpirun --hostfile nodes .*program train -i d.yaml --set run.dir=run_pbs --max-time 00:30:00$' &&
  called '^qsub -W depend=afterany:7.pbs -v DECK=d.yaml,RUN=run_pbs,SAKER_JOBSCRIPTS=' && [ "$(grep -c ^qsub calls)" = 1 ]
ok $? "pbs.sh: tells the time limit, submits one follow-up job" || say_log calls
LS_SUBCWD=$dir LSB_JOBID=8 site lsf bash "$scripts/lsf.sh"
ok $? "lsf.sh: two jobs" || say_log lsf.log
called '^mpirun .*program train -i d.yaml --set run.dir=run_lsf$' && called '^bsub -w ended(8)$' && [ "$(grep -c ^bsub calls)" = 1 ]
ok $? "lsf.sh: submits one follow-up job" || say_log calls
FLUX_JOB_ID=f9 site flux bash "$scripts/flux.sh" d.yaml run_flux --set train.steps=5
ok $? "flux.sh: two jobs" || say_log flux.log
called '^flux run -n 4 .*program train -i d.yaml --set run.dir=run_flux --set train.steps=5$' &&
  called '^flux --parent batch --dependency=afterany:f9 .*flux.sh d.yaml run_flux --set train.steps=5$'
ok $? "flux.sh: as many ranks as cores, submits a follow-up job" || say_log calls
for name in pbs lsf flux; do
  grep -q 'UNTESTED on a real site' "$scripts/$name.sh" || echo $name >>unsaid
done
[ ! -e unsaid ]
ok $? "and they say that no real site has seen them"
finish
