#!/usr/bin/env bash
# campaign.sh COUNT [SEED [FIRST]]: COUNT launched faults (200 and more make the whole plan), drawn from SEED. A small
# model trains 6 steps with a checkpoint every 2 on 1 or 2 ranks; something happens to it; then the same command
# must bring the run to its end with the bits of a run to which nothing happened. TAP on stdout, at the end a table of
# outcomes. FIRST: begin with this case (to repeat one: campaign.sh 1 SEED CASE).
# A silent failure: the run says that all is well (exit code 0, complete) and has other bits, or a fault that took
# something away is not mentioned. An unusable folder: the same command does not complete the run with the right bits.
# shellcheck disable=SC2317,SC2086 # the kinds of faults are called by name; numbers need no quotes
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
count=${1:-200} seed=${2:-1} first=${3:-1}
dir=$(realpath "$(mktemp -d)")
trap 'umount "$dir/small" 2>/dev/null; rm -rf "$dir"' EXIT
cd "$dir" || exit 1
faulty=${SAKER_BUILDDIR:?}/tests/faults/saker shim=$SAKER_BUILDDIR/tests/faults/shim.so
mkdir bin && printf '#!/bin/sh\nexit 1\n' >bin/gnuplot && chmod +x bin/gnuplot # no pictures here
PATH=$dir/bin:$PATH

# ---- the model, and what must come out ----

for _ in 1 2 3; do cat "$SAKER_SRCDIR/LICENSE"; done >text.txt
cat >deck.yaml <<EOT
run: {dir: run, seed: 7, device: cpu}
model:
  {pattern: "P-", vocab_size: 257, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
   num_key_value_heads: 1, head_dim: 8, intermediate_size: 24, mamba_d_ssm: 16, mamba_n_heads: 2,
   mamba_d_head: 8, mamba_d_state: 8, mamba_chunk_size: 16, mamba_rms_norm: true, pad_token_id: null}
data: {train: [{path: text.h5}], sequence: 32, documents: isolate}
train: {steps: 6, global_batch: 4, micro_batch: 2, dtype: fp32}
optimizer: {lr: 3.0e-3, clip: 1.0, schedule: {kind: constant, warmup: 2}}
checkpoint: {every: 2, keep: 2}
EOT

# launch RANKS PROGRAM ARGUMENTS...: saker train; output in ./log, exit code in $code (124: it hung).
launch() {
  local start=()
  # shellcheck disable=SC2206 # MPIRUN may carry options
  [ "$1" = 1 ] || start=($MPIRUN -np "$1") # one rank without a launcher, which is faster
  set -- "${@:2}"
  { timeout -k 5 60 "${start[@]}" "$1" train -i deck.yaml "${@:2}" >log 2>&1; } 2>/dev/null # the shell's own "Killed"
  code=$?
}
# hashes RUN: names and hashes of the last checkpoint's datasets (the files differ in the run's id).
hashes() {
  tr -d '\n ' <"$1/checkpoints/step-00000006/manifest.json" | grep -o '"name":"[^"]*/[^"]*"\|"start"[^}]*"sum64":"[0-9a-f]*"'
}
# right RUN: complete, with the last checkpoint of the undisturbed run; its losses too, as far as they could be written.
right() {
  [ -n "${status_lost:-}" ] || grep -q '"state": *"complete"' "$1/status.json" || return 1
  hashes "$1" >data.txt && cmp -s data.txt "data$n.txt" || return 1
  steps "$1" >steps.txt
  if [ -n "${lines_lost:-}" ]; then grep -vxF -f "steps$n.txt" steps.txt >other.txt && return 1
  else cmp -s steps.txt "steps$n.txt" || return 1; fi
  return 0
}

"$SAKER" data build --tokenizer bytes -o text.h5 text.txt >log 2>&1
ok $? "data" || say_log log
for n in 1 2; do
  launch $n "$SAKER" --set run.dir=quiet$n
  [ $code = 0 ] && hashes quiet$n >data$n.txt && steps quiet$n >steps$n.txt && [ "$(grep -c sum64 data$n.txt)" -ge 60 ] && right quiet$n
  ok $? "a run on $n ranks to which nothing happens" || say_log log
  launch $n "$SAKER" --set run.dir=again$n
  right again$n
  ok $? "and a second one with the same bits" || say_log log
  launch $n "$SAKER" --set run.dir=other$n --set run.seed=8
  ! right other$n
  ok $? "another seed gives other bits"
  launch $n "$SAKER" --set run.dir=four$n --set train.steps=4 # for damage between two jobs
done
cp text.h5 good.h5

# ---- faults ----

# pick WORDS...: one of them. It runs in subshells, where RANDOM would not follow from the seed: the case, the line and
# the words decide.
pick() {
  local i
  i=$(cksum <<<"$seed $number ${BASH_LINENO[0]} $*")
  shift $((${i%% *} % $#))
  echo "$1"
}
flip() { # flip FILE BYTE: one of its bits
  local old
  old=$(od -An -tu1 -j "$2" -N 1 "$1")
  printf '%b' "\\0$(printf %o $((old ^ (1 << RANDOM % 8))))" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
damage() { # damage FILE: something happens to its bytes
  local size at
  size=$(stat -c %s "$1")
  at=$(((RANDOM * 32768 + RANDOM) % size))
  case $(pick flip flip flip cut0 cut1 cut cutend more zeros gone) in
    flip) what="bit flipped at byte $at"; flip "$1" $at ;;
    cut0) what="cut to 0 bytes"; : >"$1" ;;
    cut1) what="cut to 1 byte"; truncate -s 1 "$1" ;;
    cut) what="cut to $at bytes"; truncate -s $at "$1" ;;
    cutend) what="last byte cut off"; truncate -s $((size - 1)) "$1" ;;
    more) what="a byte added"; printf x >>"$1" ;;
    zeros) what="replaced by as many zeros"; head -c "$size" /dev/zero >"$1" ;;
    gone) what="removed"; rm "$1" ;;
  esac
}

# Each kind makes its fault: sets n (ranks), what (a description), and runs things so that $code and log are those of
# the run that was struck. It sets want to what that run must do: fails, stops (exit 0, incomplete or complete), goes
# (whatever, if it says so), refuses (exit 1 or 2); and says, a pattern that its output must have.

in_save() { # in_save ACTIONS...: a file operation of one of the saves; SAKER_SHIM in $spec
  local s action
  s=$(pick 2 4 6)
  action=$(pick "$@")
  n=$(pick 1 2)
  local t="*/step-0000000$s.tmp.*"
  local calls=("mkdir:$t:1" "open:$t/model.h5:1" "open:$t/optimizer.h5:1" "write:$t/model.h5:1" "write:$t/model.h5:2"
    "write:$t/optimizer.h5:1" "write:$t/optimizer.h5:2" "fsync:$t/model.h5:1" "fsync:$t/optimizer.h5:1"
    "open:$t/manifest.json*:1" "write:$t/manifest.json*:1" "fsync:$t/manifest.json*:1" "rename:$t/manifest.json*:1"
    "fsync:${t}[0-9]:1" "rename:${t}[0-9]:1" "fsync:*/checkpoints:1" "open:*/latest*:1" "write:*/latest*:1" "rename:*/latest*:1")
  [ $s != 6 ] || case $action in kill*) calls+=("rename:*/step-00000002:1" "unlink:*/step-00000002.tmp*/*.h5:1") ;; esac
  place=$(pick "${calls[@]}")
  case $action:$place in short:* | torn-kill:*) place=$(pick "${calls[@]:3:4}" "${calls[10]}") ;; esac
  spec=0:$place$later:$action
  what="save of step $s, $n ranks: ${place//\*/} $action$later"
}
with_shim() { LD_PRELOAD=$shim SAKER_SHIM=$spec SAKER_SHIM_LOG=$dir/struck launch "$n" "$faulty" --set run.dir=run "$@"; }
with_injection() { SAKER_INJECT=$spec SAKER_SHIM_LOG=$dir/struck launch "$n" "$faulty" --set run.dir=run "$@"; }

kill_in_save() { later=; in_save kill kill kill-after torn-kill; want=fails; with_shim; }
usr1_in_save() { later=; in_save usr1; want=stops; with_shim; }
stop_in_save() { later=; in_save stop; n=2; want=fails says='rank 0 on host .* does not run'; with_shim --set watch.step=2; }
error_once() { later=; in_save EIO ENOSPC EDQUOT; want=goes says='warning: |saker: '; with_shim; }
error_lasts() { later=+; in_save EIO ENOSPC EDQUOT; want=goes says='warning: |saker: '; with_shim; }
short_write() { later=$(pick '' +); in_save short; want=goes; with_shim; }
small_file() { # of the run folder's other files
  local file
  file=$(pick metrics.jsonl status.json.\* deck.yaml.\* lock)
  n=$(pick 1 2) later=$(pick '' +)
  spec="0:$(pick open write):*/$file:$(pick 1 2)$later:$(pick EIO ENOSPC)"
  case $spec in *lock* | *deck.yaml* | *open:*metrics*) spec=${spec/:2/:1} ;; esac
  what="$n ranks: ${spec#0:}" want=goes
  case $spec in *write*lock*) ;; *) says='warning: |saker: ' ;; esac # what the lock's file says is a hint only
  case $spec in *metrics*) lines_lost=1 ;; *status*) status_lost=1 ;; esac # a warning says so
  with_shim
}
full_disk() {
  mkdir -p small
  mount -t tmpfs -o size=$((300 + RANDOM % 8 * 40))k none small 2>/dev/null || cannot="no tmpfs may be mounted"
  [ -z "$cannot" ] || return
  n=$(pick 1 2)
  what="$n ranks: tmpfs of $(df -k --output=size small | tail -1 | tr -d ' ') KiB" want=fails says='No space left|cannot be'
  ln -s "$dir/small" run
  launch "$n" "$SAKER" --set run.dir=run
  mount -o remount,size=20m small # somebody has made room
}
limited() { # limited ULIMIT_OPTION VALUE OPTIONS...: on all ranks, but not for the launcher and the log
  printf '#!/bin/bash\nulimit %s %s && exec "%s" "$@"\n' "$1" "$2" "$SAKER" >limited
  chmod +x limited
  launch "$n" ./limited --set run.dir=run "${@:3}"
}
file_size() {
  n=2 want=fails says='cannot be|abort' # below 64 KiB MPI itself may not start
  local limit=$((40 + RANDOM % 60))
  what="$n ranks: ulimit -f $limit KiB"
  limited -f $limit
}
damaged_file() { # of the newest checkpoint
  n=$(pick 1 2)
  cp -r four$n run
  local file
  file=$(pick model.h5 optimizer.h5 manifest.json)
  damage run/checkpoints/step-00000004/$file
  what="$n ranks: $file of the newest checkpoint: $what" want=stops says='damaged checkpoints are passed over'
  launch "$n" "$SAKER" --set run.dir=run
}
damaged_all() {
  n=$(pick 1 2)
  cp -r four$n run
  cp -r run/checkpoints saved
  local file
  file=$(pick model.h5 optimizer.h5 manifest.json)
  damage run/checkpoints/step-00000004/$file
  damage run/checkpoints/step-00000002/$file
  what="$n ranks: $file of all checkpoints damaged" want=refuses says='has checkpoints but none that is whole'
  launch "$n" "$SAKER" --set run.dir=run
  rm -r run/checkpoints && mv saved run/checkpoints # from a backup
}
swapped() {
  n=$(pick 1 2)
  cp -r four$n run
  local c=run/checkpoints file
  file=$(pick model.h5 optimizer.h5)
  want=stops says='damaged checkpoints are passed over'
  case $(pick step run rank latest) in
    step) what="$file of step 2 in step 4"; cp $c/step-00000002/$file $c/step-00000004/ ;;
    run) what="$file of another run"; cp other$n/checkpoints/step-00000004/$file $c/step-00000004/ ;;
    rank) what="manifest of step 2 in step 4"; cp $c/step-00000002/manifest.json $c/step-00000004/ ;;
    latest) what="latest names another step"; says=; echo step-00000002 >$c/latest ;;
  esac
  what="$n ranks: $what"
  launch "$n" "$SAKER" --set run.dir=run
}
wrong_grid() {
  n=$(pick 1 2)
  cp -r four$n run
  local key
  key=$(pick parallel.tp=3 parallel.pp=4 parallel.cp=5 parallel.tp=64 train.micro_batch=3 parallel.virtual_stages=3)
  what="$n ranks: $key" want=refuses says='saker: '
  launch "$n" "$SAKER" --set run.dir=run --set "$key"
}
wrong_config() {
  n=$(pick 1 2)
  cp -r four$n run
  local key
  key=$(pick model.hidden_size=32 model.vocab_size=300 optimizer.lr=1e-3 run.seed=9 data.sequence=64 optimizer.betas='[0.8, 0.9]' \
    train.global_batch=8 model.mamba_d_state=16 optimizer.clip=2 data.documents=concatenate optimizer.schedule.warmup=3)
  what="$n ranks: $key" want=refuses says=${key%%=*}
  launch "$n" "$SAKER" --set run.dir=run --set "$key"
}
nan() {
  n=$(pick 1 2)
  local step=$((1 + RANDOM % 6))
  spec=$((RANDOM % n)):$step:nan
  what="$n ranks: $spec" want=fails says="step $step: loss .*is not finite"
  with_injection
}
bit() {
  n=2
  local step=$((1 + RANDOM % 6)) rank=$((RANDOM % 2))
  spec=$rank:$step:bit:$((RANDOM * 32768 + RANDOM))
  what="$n ranks: $spec" want=fails says="step $step: the weights of data parallel ranks differ"
  with_injection --set watch.replicas=1
}
signal() {
  local kind
  kind=$(pick kill kill segv term usr1)
  n=$(pick 1 2)
  spec=$((RANDOM % n)):$((1 + RANDOM % 6)):$kind
  what="$n ranks: $spec" want=fails
  case $kind in term | usr1) want=stops ;; esac
  with_injection
}
stopped() {
  n=2
  local rank=$((RANDOM % 2)) kind
  kind=$(pick stop stop hang)
  spec=$rank:$((3 + RANDOM % 4)):$kind
  what="$n ranks: $spec" want=fails says="rank $rank on host .* (does not run|makes no progress)"
  with_injection --set watch.step=2
}
kill_any_time() {
  n=$(pick 1 2)
  local ms=$((RANDOM % 900)) job
  what="$n ranks: kill -9 after $ms ms" want=any
  (launch "$n" "$SAKER" --set run.dir=run --set "train.steps=6"; echo $code >code) &
  job=$!
  sleep "$(printf '0.%03d' $ms)"
  for p in /proc/[0-9]*; do
    [ "$(readlink "$p/exe" 2>/dev/null)" = "$SAKER" ] && [ "$(readlink "$p/cwd" 2>/dev/null)" = "$dir" ] && kill -9 "${p#/proc/}" 2>/dev/null && break
  done
  wait $job
  code=$(cat code)
}
bad_data() {
  n=$(pick 1 2)
  want=refuses says='text\.h5'
  case $(pick gone cut text tokens version) in
    gone) what="data set removed"; rm text.h5 ;;
    cut) what="data set cut"; truncate -s $((RANDOM % 20000)) text.h5 ;;
    text) what="data set is text"; cp text.txt text.h5 ;;
    tokens) what="tokens beyond the vocabulary"; for at in 20000 30000 40000 50000; do head -c 4000 /dev/zero | tr '\0' '\377' | dd of=text.h5 bs=1 seek=$at conv=notrunc 2>/dev/null; done ;;
    version) what="format attribute changed"; sed -i 's/saker-tokens/saker-tokenz/' text.h5 ;;
  esac
  what="$n ranks: $what"
  launch "$n" "$SAKER" --set run.dir=run
  cp good.h5 text.h5
}
few_files() {
  n=1 want=any
  local limit=$((6 + RANDOM % 20))
  what="ulimit -n $limit"
  limited -n $limit
}
little_memory() {
  n=$(pick 1 2) want=any
  local limit=$((300000 + RANDOM % 10 * 50000))
  what="$n ranks: ulimit -v $limit KiB and a large micro-batch"
  limited -v $limit --set train.micro_batch=40000 --set train.global_batch=$((n * 40000))
  [ $code != 0 ] && rm -rf run # its batch is another one: nothing to continue
}
two_jobs() {
  n=$(pick 1 2)
  what="$n ranks: a second job on the same folder" want=refuses says='in use by another job'
  local job
  (spec=0:3:slow:500; SAKER_INJECT=$spec launch "$n" "$faulty" --set run.dir=run >/dev/null; mv log first.log; echo $code >code) &
  job=$!
  for _ in $(seq 100); do grep -qs '"step": *2,' run/metrics.jsonl && break; sleep 0.05; done
  timeout 60 "$SAKER" train -i deck.yaml --set run.dir=run >second.log 2>&1
  code=$?
  wait $job
  [ "$(cat code)" = 0 ] || code=99 # the first one must not notice
  mv second.log log
}
crash_loop() {
  n=1
  what="it dies in every save" want=fails says='3 jobs in a row'
  spec="0:fsync:*/step-0000000[0-9].tmp.*/manifest.json*:1:kill"
  LD_PRELOAD=$shim SAKER_SHIM=$spec SAKER_SHIM_LOG=$dir/struck SAKER=$faulty timeout 100 \
    "$SAKER_SRCDIR"/jobscripts/chain.sh 1 deck.yaml run >log 2>&1
  code=$?
}

# kind, its share of 200, and what the table calls it
plan="kill_in_save 40 kill -9 at a phase of a save
kill_any_time 10 kill -9 of a process at any time
signal 12 signal in a step (KILL, SEGV, TERM, USR1)
usr1_in_save 14 SIGUSR1 during a save
stop_in_save 3 SIGSTOP during a save
stopped 6 SIGSTOP or hang in a step
error_once 26 one EIO, ENOSPC or EDQUOT in a save
error_lasts 14 lasting EIO, ENOSPC or EDQUOT from a save on
short_write 6 short writes
small_file 10 errors on the run folder's small files
full_disk 6 full disk (tmpfs)
file_size 3 file size limit
damaged_file 16 newest checkpoint flipped, cut, removed
damaged_all 4 all checkpoints damaged
swapped 5 files of other steps and runs
wrong_grid 4 impossible process grid
wrong_config 5 another model, optimizer or data order
nan 6 NaN gradient
bit 6 bit of a weight flipped on one replica
bad_data 5 bad data set
few_files 3 too few file descriptors
little_memory 3 too little memory
two_jobs 2 two jobs on one folder
crash_loop 1 crash loop"

# ---- one case: the fault, then the same command again ----

judge() { # what the struck run did
  case $want in
    fails) [ $code != 0 ] && [ $code != 124 ] ;;
    stops) [ $code = 0 ] && { right run || grep -q '"state": *"incomplete"' run/status.json; } ;;
    refuses) [ $code = 1 ] || [ $code = 2 ] ;;
    goes) [ $code = 1 ] || { [ $code = 0 ] && right run; } ;;
    any) [ $code != 124 ] && { [ $code != 0 ] || right run; } ;;
  esac
}
case_number() { # case_number I KIND
  local kind=$2 silent='' unusable=''
  number=$1
  RANDOM=$((seed * 1000 + $1))
  rm -rf run struck code says
  spec='' says='' what='' want='' later='' lines_lost='' status_lost='' cannot='' code=''
  cp good.h5 text.h5
  $kind
  if [ -n "$cannot" ]; then
    skip "$1 $kind: $cannot"
    bump "$kind" skipped
    return
  fi
  [ -z "$spec" ] || [ "$kind" = two_jobs ] || [ -s struck ] || silent="; the fault was not reached ($spec)"
  [ $code != 124 ] || silent="; it hung"
  [ -n "$silent" ] || judge || silent="; exit code $code where '$want' was expected, or other bits"
  [ -n "$silent" ] || [ -z "$says" ] || grep -Eq "$says" log || silent="; nothing said of it ($says)"
  if [ "$code" = 0 ]; then bump "$kind" went_on; else bump "$kind" ended; fi
  cp log struck.log
  status_lost='' # the next job can write it
  launch "$n" "$SAKER" --set run.dir=run
  if [ $code != 0 ]; then unusable="; the same command: exit code $code"
  elif ! right run; then unusable="; the same command: other bits"
  elif ! "$SAKER" verify run/checkpoints/step-00000006 >verify.log 2>&1; then unusable="; the last checkpoint is damaged"; fi
  [ -z "$(find run/ -name '*.tmp*' -print -quit)" ] || unusable="$unusable; left over: $(find run/ -name '*.tmp*' | head -1)"
  [ -z "$silent" ] || bump "$kind" silent
  [ -z "$unusable" ] || bump "$kind" unusable
  [ -z "$silent$unusable" ]
  ok $? "$1 $kind: $what$silent$unusable" || { say_log struck.log && say_log log; }
  bump "$kind" launched
  mountpoint -q small && umount small
}

declare -A tally
bump() { tally[$1 $2]=$((${tally[$1 $2]:-0} + 1)); }
# The plan as a list of kinds; a smaller count takes every k-th.
list=()
while read -r kind share _; do for _ in $(seq "$share"); do list+=("$kind"); done; done <<<"$plan"
total=${#list[@]} begin=$SECONDS
for ((i = 0; i < count && i < total; i++)); do
  if [ "$count" -ge "$total" ] || [ "$first" -gt 1 ]; then k=$((first + i)); else k=$((i * total / count + 1)); fi
  [ $k -le "$total" ] && case_number $k "${list[k - 1]}"
done

# ---- the table ----
table() {
  printf '| fault | launched | went on | ended, said so | silent | unusable |\n|---|---|---|---|---|---|\n'
  while read -r kind _ name; do
    [ -n "${tally[$kind launched]:-}" ] || continue
    printf '| %s | %d | %d | %d | %d | %d |\n' "$name" "${tally[$kind launched]}" "${tally[$kind went_on]:-0}" \
      "${tally[$kind ended]:-0}" "${tally[$kind silent]:-0}" "${tally[$kind unusable]:-0}"
  done <<<"$plan"
}
table | awk -F'|' '{ print "# " $0; for (i = 3; i <= 7; i++) s[i] += $i }
  END { printf "# | all | %d | %d | %d | %d | %d |\n", s[3], s[4], s[5], s[6], s[7] }'
echo "# seed $seed, $((SECONDS - begin)) s"
finish
