#!/usr/bin/env bash
# A tokenizer.json from text to text: data sets that are the same on every number of ranks, packed texts, training that
# takes the tokenizer along, generation; and what is refused on the way.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
ref=$SAKER_SRCDIR/tests/ref/tokenizer
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

# --- the same file, whatever the number of ranks and the packing ---
mkdir texts
for i in $(seq 40); do sed "s/ the / $i /" "$SAKER_SRCDIR/README.md"; cat "$SAKER_SRCDIR/LICENSE"; done >texts/a.txt
while [ "$(wc -c <texts/a.txt)" -lt 18000000 ]; do cat texts/a.txt texts/a.txt >twice && mv twice texts/a.txt; done
printf '{"text": "one <|endoftext|> line"}\n{"text": ""}\n{"text": "two \\u00e9\\ud83d\\ude00"}\n' >texts/b.jsonl
printf 'not \xff UTF-8 \xe4\xb8' >texts/c.txt
for n in 1 2 5; do
  ranks $n data build --tokenizer "$ref/gpt2.json" -o set$n.h5 texts
  ok $? "data build on $n ranks" || say_log log
done
cmp -s set1.h5 set2.h5 && cmp -s set1.h5 set5.h5
ok $? "the files are the same byte for byte, also where a text of 18 MB is cut"
# A line that fills units and cannot be cut; the other file is never cut.
yes 'words to fill a line 123' | head -c 3300000 | tr '\n' ' ' >wide.txt
{ echo; for _ in $(seq 150); do sed 's/^ *//; s/["\\]//g' "$SAKER_SRCDIR/LICENSE"; done; } >>wide.txt
awk 'BEGIN { printf "{\"text\": \"" } { printf "%s\\n", $0 } END { print "\"}" }' wide.txt >wide.jsonl
for f in wide.txt wide.jsonl; do ranks 3 data build --tokenizer "$ref/gpt2.json" -o "$f.h5" $f || say_log log; done
if command -v h5diff >/dev/null; then
  same_h5 wide.txt.h5 wide.jsonl.h5 /data /documents
  ok $? "a line longer than several units, then short ones: no token twice, none lost"
else skip "h5diff is not installed"; fi
ranks 1 data info set1.h5 && grep -q 'documents    4' log && grep -q 'uint16' log &&
  grep -q 'two é.*<end>' log && grep -q "not $(printf '\xef\xbf\xbd') UTF-8" log && grep -Eq '^ +8 - 15 .*#' log
ok $? "data info: documents, a histogram, samples as text" || say_log log
mkdir packed
gzip -c texts/a.txt >packed/a.txt.gz
gzip -c texts/b.jsonl >packed/b.jsonl.gz
cp texts/c.txt packed/
ranks 3 data build --tokenizer "$ref/gpt2.json" -o gz.h5 packed
ok $? "packed texts" || say_log log
if command -v h5diff >/dev/null; then
  same_h5 set1.h5 gz.h5 /data /documents
  ok $? "give the same tokens and documents"
else skip "h5diff is not installed"; fi
ranks 2 data build --tokenizer "$ref/gpt2.json" -o glob.h5 'texts/[bc]*' && grep -q 'in 3 documents from 2 files' log
ok $? "a glob" || say_log log
head -c 100000 packed/a.txt.gz >cut.txt.gz
cp texts/c.txt plain.gz
cp texts/c.txt plain.zst
for f in cut.txt.gz plain.gz plain.zst; do
  ranks 2 data build --tokenizer "$ref/gpt2.json" -o no.h5 $f
  [ $? = 1 ] && grep -q "^saker: $f: " log && ! [ -e no.h5 ]
  ok $? "$f: not what its name says" || say_log log
done

mkdir hf
cp "$ref/llama3.json" hf/tokenizer.json
echo '{"eos_token": {"content": "<|im_end|>"}}' >hf/tokenizer_config.json
ranks 2 data build --tokenizer hf/tokenizer.json -o im.h5 texts/b.jsonl && ranks 1 data info im.h5 &&
  grep -q "^  vocabulary.* $(grep -o '"id":[0-9]*,"content":"<|im_end|>"' hf/tokenizer.json | grep -o '[0-9]*' | head -1) ends" log
ok $? "the end of a document comes from tokenizer_config.json" || say_log log
ranks 3 data check set1.h5 && grep -q 'set1.h5: good: [0-9]* tokens, all below 640; 4 documents' log && ! grep -q note log
ok $? "data check" || say_log log
size=$(wc -c <im.h5)
cp im.h5 bad.h5
at=$(grep -abo '"<|im_start|>"' bad.h5 | head -1 | cut -d: -f1)
printf X | dd of=bad.h5 bs=1 seek=$((at + 3)) conv=notrunc 2>/dev/null
ranks 2 data check bad.h5
[ $? = 1 ] && [ "$(wc -c <bad.h5)" = "$size" ] && grep -q 'bad.h5: /tokenizer.json is damaged' log
ok $? "data check finds a damaged tokenizer" || say_log log

# --- refused ---
ranks 2 data build --tokenizer "$ref/expected.json" -o no.h5 texts
[ $? = 1 ] && grep -q 'expected.json: its pre-tokenizer has no ByteLevel' log && ! [ -e no.h5 ]
ok $? "a file that is no tokenizer" || say_log log
ranks 2 data build --tokenizer "$ref/gpt2.json" --eos '<eot>' -o no.h5 texts
[ $? = 2 ] && grep -q 'no token <eot>' log
ok $? "an end of document that the tokenizer does not have" || say_log log

# --- training takes the tokenizer along, generation finds it ---
small_run
ok $? "a deck" || say_log log
cp text.h5 bytes.h5
ranks 2 data build --tokenizer "$ref/llama3.json" -o text.h5 text.txt
ok $? "its text with another tokenizer" || say_log log
ranks 2 train -i deck.yaml
[ $? = 2 ] && grep -q 'model.vocab_size' log
ok $? "a model whose vocabulary is too small is refused" || say_log log
ranks 2 train -i deck.yaml --set model.vocab_size=720 --set 'data.valid=[{path: bytes.h5}]'
[ $? = 2 ] && grep -q 'different tokenizers' log
ok $? "validation data of another tokenizer are refused" || say_log log
ranks 2 train -i deck.yaml --set model.vocab_size=720 --set 'data.train=[{path: text.h5}, {path: bytes.h5}]'
[ $? = 2 ] && grep -q 'do not mean the same' log
ok $? "and a blend of two tokenizers" || say_log log
ranks 2 train -i deck.yaml --set model.vocab_size=720 --set 'data.valid=[]' --set data.holdout=0.2
ok $? "training, validated on what is held out" || say_log log
grep -q '"valid_loss"' run/metrics.jsonl
ok $? "there is a validation loss"
last=run/checkpoints/step-00000020
cmp -s $last/tokenizer.json "$ref/llama3.json" && grep -q 'endoftext' $last/tokenizer_config.json
ok $? "the checkpoint has the tokenizer" || ls $last
ranks 1 verify $last
ok $? "and verifies" || say_log log
ranks 1 generate --from $last --prompt 'The license ' --tokens 60 --seed 3 --temperature 1.5 && cp log one
ranks 2 generate --from $last --prompt 'The license ' --tokens 60 --seed 3 --temperature 1.5 && cmp -s log one
ok $? "generate writes the same on 1 and 2 ranks" || say_log log
grep -q '^The license ' one && iconv -f UTF-8 -t UTF-8 one >/dev/null && [ "$(wc -c <one)" -gt 80 ]
ok $? "UTF-8 that begins with the prompt" || say_log one
ranks 1 generate --from $last --prompt x --tokens 5 --tokenizer "$ref/gpt2.json"
ok $? "generate with a tokenizer of one's own" || say_log log
cp text.h5 other.h5
ranks 1 data build --tokenizer "$ref/gpt2.json" -o text.h5 text.txt
ranks 2 train -i deck.yaml --set model.vocab_size=720 --set 'data.valid=[]' --set data.holdout=0.2 --set train.steps=22
[ $? = 2 ] && grep -q 'weights come with a tokenizer.json' log
ok $? "a restart on data of another tokenizer is refused" || say_log log

# --- a blend and its restart: the same batches on another number of ranks ---
cp other.h5 text.h5
ranks 1 data build --tokenizer "$ref/llama3.json" -o second.h5 "$SAKER_SRCDIR/README.md"
blend='data.train=[{path: text.h5, weight: 0.7}, {path: second.h5, weight: 0.3}]'
for n in 1 2; do
  ranks $n train -i deck.yaml --set model.vocab_size=720 --set "$blend" --set run.dir=b$n
  ok $? "a blend of two sets on $n ranks" || say_log log
  steps b$n >s$n
done
near s2 s1
ok $? "has the same losses"
rm -rf half && cp -r b2 half && rm -rf half/checkpoints/step-00000020
ranks 3 train -i deck.yaml --set model.vocab_size=720 --set "$blend" --set run.dir=half
ok $? "restarted half way on 3 ranks" || say_log log
steps half >s3
near s3 s1
ok $? "goes on with the same batches"
finish
