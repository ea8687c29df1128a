#!/usr/bin/env bash
# Damaged files, full disks, wrong restarts, a second job: on several numbers of ranks one clear message, the exit code
# of the design, no hang, and nothing lost.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
# A mount of our own for a disk that fills up; where that is not allowed these checks are skipped.
if [ -z "${SAKER_OWN_MOUNT:-}" ]; then
  if unshare -rm true 2>/dev/null; then exec unshare -rm env SAKER_OWN_MOUNT=yes bash "$0"; else SAKER_OWN_MOUNT=no; fi
fi
dir=$(mktemp -d)
trap 'cd /; umount "$dir/disk" 2>/dev/null; rm -rf "$dir"' EXIT
cd "$dir" || exit 1

# says CODE TEXT: the last command's exit code and one message that has TEXT.
says() {
  [ "$code" = "$1" ] && grep -q -e "$2" log && [ "$(grep -c '^saker: ' log)" = 1 ]
}
try() { # try N VERB...: with its exit code in $code
  ranks "$@"
  code=$?
}

small_run
ok $? "data and deck"
ranks 1 train -i deck.yaml --set run.dir=quiet --set train.steps=12 --set optimizer.schedule.kind=constant
ok $? "an undisturbed run"
ranks 2 train -i deck.yaml --set run.dir=good --set train.steps=4 --set checkpoint.every=2
ok $? "a run with two checkpoints"
two=checkpoints/step-00000002 four=checkpoints/step-00000004

for n in 1 3; do
  # --- the files of a checkpoint: damaged, so the older one is taken; both, so nothing starts ---
  for how in cut flipped swapped missing empty; do
    rm -rf bad
    cp -r good bad
    case $how in
    cut) truncate -s -100 bad/$four/optimizer.h5 ;;
    flipped) printf 'X' | dd of=bad/$four/model.h5 bs=1 seek=3000 conv=notrunc 2>/dev/null ;;
    swapped) cp bad/$two/model.h5 bad/$four/model.h5 ;;
    missing) rm bad/$four/optimizer.h5 ;;
    empty) : >bad/$four/manifest.json ;;
    esac
    try $n train -i deck.yaml --set run.dir=bad --set train.steps=5 --set checkpoint.every=2
    [ $code = 0 ] && grep -q 'warning: damaged checkpoints are passed over' log && grep -q 'Restarted from .*step-00000002' log
    ok $? "$n ranks: newest checkpoint $how: a warning, and the one before it" || say_log log
  done
  rm -rf bad
  cp -r good bad
  rm bad/$two/model.h5 bad/$four/manifest.json
  try $n train -i deck.yaml --set run.dir=bad
  says 1 'none that is whole' && grep -q 'To start over' log && [ -e bad/$two/optimizer.h5 ] && [ -e bad/$four/model.h5 ]
  ok $? "$n ranks: no checkpoint whole: exit code 1, nothing is touched" || say_log log

  # --- another deck, another start ---
  try $n train -i deck.yaml --set run.dir=good --set optimizer.lr=1.0e-3 --set data.sequence=32
  says 2 'optimizer.lr: 0.003 -> 0.001' && grep -q 'data.sequence: 64 -> 32' log
  ok $? "$n ranks: another deck on a restart: both changes, exit code 2" || say_log log
  try $n train -i deck.yaml --set run.dir=good --restart none
  says 2 'would mix two runs' && [ -e good/$four/manifest.json ]
  ok $? "$n ranks: --restart none over checkpoints: exit code 2" || say_log log

  # --- data ---
  try $n train -i deck.yaml --set run.dir=none --set model.vocab_size=256
  says 2 'its vocabulary has 257 ids' && ! [ -e none/checkpoints ]
  ok $? "$n ranks: a vocabulary smaller than the data's: exit code 2" || say_log log
  sed 's/A\x00p\x00a\x00c\x00h\x00e\x00/A\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff/g' text.h5 >token.h5
  try $n data check token.h5
  says 1 'token.h5: token [0-9]* is 65535'
  ok $? "$n ranks: tokens out of range: exit code 1" || say_log log
  rm -rf token
  try $n train -i deck.yaml --set run.dir=token --set 'data.train=[{path: token.h5}]' --set train.steps=60
  says 1 'token.h5: token [0-9]* is 65535' && grep -q '"state": *"failed"' token/status.json
  ok $? "$n ranks: training that meets one: exit code 1, status failed" || say_log log

  # --- a second job on the same folder ---
  rm -rf busy
  # shellcheck disable=SC2086 # MPIRUN may carry options
  $MPIRUN -np $n "$SAKER" train -i deck.yaml --set run.dir=busy --set train.steps=100000 >log1 2>&1 &
  first=$!
  for _ in $(seq 300); do
    grep -qs '"step"' busy/metrics.jsonl && break
    sleep 0.2
  done
  # shellcheck disable=SC2086
  timeout -k 5 120 $MPIRUN -np $n "$SAKER" train -i deck.yaml --set run.dir=busy >log2 2>&1
  code=$?
  [ $code = 1 ] && [ "$(grep -c '^saker: ' log2)" = 1 ] && grep -q 'busy' log2 && grep -q "$(hostname)" log2
  ok $? "$n ranks: a second job on the folder is refused: exit code 1" || say_log log2
  kill -USR1 $first
  wait $first
  code=$?
  [ $code = 0 ] && grep -q '"state": *"incomplete"' busy/status.json
  ok $? "$n ranks: the first one goes on, and stops when it is told to" || say_log log1

  # --- a disk that fills up ---
  if [ "$SAKER_OWN_MOUNT" = no ]; then
    skip "no mount of our own here"
    continue
  fi
  mkdir -p disk && mount -t tmpfs -o size=16m none disk || exit 1
  deck=(-i deck.yaml --set run.dir=disk/run --set optimizer.schedule.kind=constant --set checkpoint.every=2)
  ranks $n train "${deck[@]}" --set train.steps=2 && dd if=/dev/zero of=disk/fill bs=64k 2>/dev/null
  # A few blocks for the small files of the run.
  truncate -s -131072 disk/fill
  try $n train "${deck[@]}" --set train.steps=12
  says 1 'third failed save in a row' && grep -q 'No space left on device' log && grep -q 'step-00000004' log
  ok $? "$n ranks: a full disk: exit code 1 after the third failed save, the reason named" || say_log log
  [ "$(ls disk/run/checkpoints)" = "$(printf 'latest\nstep-00000002')" ] && ranks $n verify disk/run/$two
  ok $? "$n ranks: nothing half written, the older checkpoint is whole" || say_log log
  try $n data build -o disk/text.h5 text.txt
  says 1 'disk/text.h5' && ! ls disk/text.h5* >/dev/null 2>&1
  ok $? "$n ranks: data build on a full disk: exit code 1, no file" || say_log log
  rm disk/fill
  try $n train "${deck[@]}" --set train.steps=12
  [ $code = 0 ] && steps disk/run >s_disk && steps quiet >s_quiet && near s_quiet s_disk
  ok $? "$n ranks: with space again the same command continues, and nothing is lost" || say_log log
  umount disk
done
finish
