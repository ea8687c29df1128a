#!/usr/bin/env bash
# What is written down agrees with the program: the table of keys, every option, the fields of all files, completion,
# the manual.
set -u
# shellcheck source=tests/tap.sh
. "${SAKER_SRCDIR:?}/tests/tap.sh"
src=$SAKER_SRCDIR
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

bash "$src/docs/deck.sh" "$SAKER" >deck.md && diff "$src/docs/deck.md" deck.md >log
ok $? "docs/deck.md is what the table of keys says (make update-docs)" || say_log log

# documented NAME... <- stdin: each name stands in docs/files.md as `name`.
documented() {
  local missing=0 name
  while read -r name; do
    grep -qE "\`[^\`]*\b$name\b[^\`]*\`" "$src/docs/files.md" && continue
    echo "# not in docs/files.md: $name"
    missing=1
  done
  return $missing
}
grep -ohE 'sk_metric_(str|int|num|ints)\([^,]+, "[a-z_0-9]+"' "$src"/src/*.c "$src"/io/*.c | sed 's/.*"\(.*\)"/\1/' | sort -u | documented
ok $? "every field of metrics.jsonl is in docs/files.md"
grep -ohE '"event", "[a-z_]+"' "$src"/src/*.c | sed 's/.*"\([a-z_]*\)"$/\1/' | sort -u | documented
ok $? "every event too"
grep -ohE 'sk_h5_(text|int)_attr\([^"]*"[a-z_0-9]+"' "$src"/io/*.c | sed 's/.*"\(.*\)"/\1/' | sort -u | documented
ok $? "every attribute of the token data"
grep -ohE '\\"[a-z_0-9]+\\":' "$src/io/manifest.c" | tr -d '\\":' | sort -u | documented
ok $? "every field of manifest.json"

# Every long option of a verb stands in the help.
for verb in $("$SAKER" --help | awk '/^  [a-z]/ && $1 != "saker" { print $1 }'); do "$SAKER" help "$verb"; done >options.txt
missing=0
while read -r option; do
  case $option in input | output) continue ;; esac # -i and -o
  grep -qe "--$option" options.txt || {
    echo "# no help for --$option"
    missing=1
  }
done < <(grep -ohE '\{"[a-z-]+", +[01], +0, +' "$src"/src/*.c | sed 's/{"\([a-z-]*\)".*/\1/' | sort -u)
ok $missing "every option has a line of help"

# --- completion ---
complete_line() { # complete_line WORD...: the last word is completed
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
  _saker
}
# shellcheck source=docs/completion/saker
. "$src/docs/completion/saker"
complete_line "$SAKER" ge && [ "${COMPREPLY[*]}" = generate ]
ok $? "completion of a verb"
complete_line "$SAKER" train --max && [ "${COMPREPLY[*]}" = --max-time ]
ok $? "of an option"
complete_line "$SAKER" train --set optimizer.schedule.w && [ "${COMPREPLY[*]}" = optimizer.schedule.warmup= ]
ok $? "of a key after --set"
"$SAKER" train --help-keys | awk 'NR > 1 && $1 !~ /\[/ { print $1 "=" }' | sort >keys
complete_line "$SAKER" train --set '' && printf '%s\n' "${COMPREPLY[@]}" | sort | cmp - keys
ok $? "all keys of the table"
touch a-deck.yaml && complete_line "$SAKER" train -i a-d && [ "${COMPREPLY[*]}" = a-deck.yaml ]
ok $? "of a file"

# --- the manual ---
if command -v help2man >/dev/null; then
  bash "$src/docs/man.sh" "$SAKER" help2man >saker.1 && grep -q 'optimizer.schedule.warmup' saker.1 &&
    grep -q 'max\\-time' saker.1 && grep -q '^.SS eval' saker.1
  ok $? "the manual has verbs, options and keys"
else
  skip "help2man is not installed"
fi
finish
