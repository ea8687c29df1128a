#!/usr/bin/env bash
# saker eval, info, data check, on several numbers of ranks: the figures, the refusals, their exit codes.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
input=$SAKER_SRCDIR/input

# --- info: the tables of section 8, for the released sizes ---
info() { # info FILE PARAMETERS W F_FWD(G)
  ranks 1 info "$input/falcon-h1-$1.json"
  awk -v p="$2" -v w="$3" -v f="$4" '
    $1 == "all" && NF == 2 { params = $2 }
    $1 == "all" && NF == 3 { flops = $3 / 1e9 }
    /matrix weights that a token meets/ { weights = $7 + 0 }
    END { exit !((p == "" || params == p) && weights == w && flops > f - 0.0006 && flops < f + 0.0006) }' log
  ok $? "info $1: parameters, matrix weights and FLOP per token as in section 8" || say_log log
}
info tiny-90m '' 90996736 0.290
info 0.5b 521411104 487440384 1.162
info 1.5b 1554863488 1420036096 3.128
info 1.5b-deep '' 1470035200 3.475
info 3b '' 2980579840 6.450
info 7b 7585648736 7184941056 15.101
info 34b '' 32302694400 66.463

small_run && ranks 1 train -i deck.yaml --set train.steps=10
ok $? "a run with one checkpoint" || say_log log
at=run/checkpoints/step-00000010
loss=$(sed -n 's/.*"valid_loss": *\([^,}]*\).*/\1/p' run/metrics.jsonl | tail -1)

same_loss() { # same_loss VERB...: on $n ranks, one line with that loss
  ranks "$n" "$@" && [ "$(grep -c 'valid loss' log)" = 1 ] && awk -v want="$loss" '/valid loss/ {
    match($0, /valid loss [0-9.]+/); x = substr($0, RSTART + 11, RLENGTH - 11) + 0
    good = x - want < 2e-5 && want - x < 2e-5 && x > 0 } END { exit !good }' log
}

n=2
for grid in parallel.tp parallel.cp parallel.pp; do
  same_loss eval -i deck.yaml --from $at --set $grid=2
  ok $? "2 ranks: eval with $grid=2 too" || say_log log
done
for n in 1 2 3; do
  # --- eval ---
  same_loss eval -i deck.yaml --from $at
  ok $? "$n ranks: eval gives the loss that training reported" || say_log log
  ranks $n eval -i deck.yaml --from $at --set model.hidden_size=48
  [ $? = 2 ] && grep -q 'model.hidden_size: 24 -> 48' log && [ "$(grep -c '^saker: ' log)" = 1 ]
  ok $? "$n ranks: eval of another model: a diff, exit code 2" || say_log log
  ranks $n eval -i deck.yaml --from $at --set 'data.valid=[]'
  [ $? = 2 ] && grep -q 'data.valid' log
  ok $? "$n ranks: eval without validation sets: exit code 2"
  ranks $n eval -i deck.yaml --from nowhere
  [ $? = 1 ] && grep -q 'nowhere: ' log
  ok $? "$n ranks: eval of a checkpoint that is not there: exit code 1"
  ranks $n eval -i deck.yaml
  [ $? = 2 ] && grep -q -e '--from' log
  ok $? "$n ranks: eval without --from: exit code 2"

  # --- info ---
  ranks $n info $at && grep -q 'step *10, after 120 sequences' log && grep -q 'model.h5 ' log && grep -q '^Parameters' log
  ok $? "$n ranks: info of a checkpoint" || say_log log
  ranks $n info deck.yaml && grep -q 'a deck' log && grep -q '20 steps of 12 x 64' log && grep -q 'FLOP per token' log
  ok $? "$n ranks: info of a deck" || say_log log
  ranks $n info text.h5 && grep -q 'documents    1' log
  ok $? "$n ranks: info of a data set" || say_log log
  ranks $n info run
  [ $? = 1 ] && grep -q 'a run folder; give one of its checkpoints' log
  ok $? "$n ranks: info of a run folder says what to give"
  ranks $n info nothing.here
  [ $? = 1 ] && grep -q 'nothing.here' log
  ok $? "$n ranks: info of nothing: exit code 1"
  ranks $n info
  [ $? = 2 ]
  ok $? "$n ranks: info without a path: exit code 2"
  ranks $n info $at --sequence 0
  [ $? = 2 ] && grep -q -e '--sequence' log
  ok $? "$n ranks: info --sequence 0: exit code 2"
done

# --- data check ---
for _ in 1 2 3 4 5 6 7 8 9 10; do cat text.txt; done >ten.txt
cp ten.txt more.txt
ranks 2 data build -o big.h5 ten.txt more.txt more.txt more.txt
tokens=$((4 * ($(wc -c <ten.txt) + 1)))
for n in 1 2 4; do
  ranks $n data check big.h5 && grep -q "good: $tokens tokens, all below 257; 4 documents in order" log && ! grep -q note: log
  ok $? "$n ranks: data check reads all $tokens tokens" || say_log log
done
# The last token of the file, two in the middle and the first are out of range.
python3 - big.h5 wrong.h5 <<'PY' 2>/dev/null || perl -e '
  undef $/; open F, "<", "big.h5"; $_ = <F>; my $at = index($_, join("", map { "$_\0" } split //, "Apache License"));
  substr($_, $at, 2) = "\xff\xff"; substr($_, $at + 2000000, 2) = "\x01\x01"; open G, ">", "wrong.h5"; print G $_'
import sys
b = bytearray(open(sys.argv[1], "rb").read())
at = b.find(bytes(x for c in b"Apache License" for x in (c, 0)))
assert at > 0
b[at:at + 2] = b"\xff\xff"
b[at + 2000000:at + 2000002] = b"\x01\x01"
open(sys.argv[2], "wb").write(b)
PY
for n in 1 2 4; do
  ranks $n data check wrong.h5
  [ $? = 1 ] && grep -q 'token [0-9]* is 65535' log && grep -q '2 of [0-9]* tokens are outside' log && [ "$(grep -c '^saker: ' log)" = 1 ]
  ok $? "$n ranks: data check finds and counts tokens out of range, exit code 1" || say_log log
  ranks $n data check deck.yaml
  [ $? = 1 ] && grep -q 'deck.yaml' log
  ok $? "$n ranks: data check of another file: exit code 1"
  ranks $n data check
  [ $? = 2 ]
  ok $? "$n ranks: data check without a file: exit code 2"
done

# --- bench ops of some ops; bench layer ---
ranks 1 bench ops -i deck.yaml --repeat 1 --warmup 0 --json ops.json ssd gate
[ $? = 0 ] && [ "$(grep -c '"pass":' ops.json)" = 6 ] && [ "$(grep -c '"floor_ms":' ops.json)" = 2 ]
ok $? "bench ops ssd gate: these, two ceilings, and the floor of ssd" || say_log log
ranks 1 bench ops -i deck.yaml ssd gates
[ $? = 2 ] && grep -q "no op 'gates'; there are gemm" log
ok $? "bench ops: an unknown op" || say_log log
ranks 1 bench layer -i deck.yaml --repeat 1 --warmup 0 --json layer.json && [ "$(grep -c '"pass":' layer.json)" = 2 ] && grep -q '"op": "layer"' layer.json
ok $? "bench layer --json" || say_log log
ranks 2 bench layer -i deck.yaml
[ $? = 2 ] && grep -q 'one rank' log
ok $? "bench layer on two ranks: exit code 2"
finish
