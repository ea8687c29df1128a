#!/usr/bin/env bash
# deck.sh SAKER: docs/deck.md from the program's own table of keys; tests/docs.sh compares.
set -eu
saker=${1:?give the program}
cat <<'TEXT'
# The deck

A deck is a YAML 1.2 file with the sections below. This page is made from the program's table of keys by `make
update-docs`; `saker train --help-keys [PREFIX]` prints the same, `saker train --print-defaults` a whole deck.

* Every key may be left out except those marked `(required)`; the default holds then. Unknown keys, wrong types, values
  out of range and keys that stand twice are errors, with file, line, column and the nearest known key; all errors of a
  deck are reported at once, exit code 2.
* `--set a.b=V` overrides a key: V is a YAML value that replaces the whole value (lists are not merged); the last wins.
* Counts take `k`, `M`, `G`, `T` (thousands) and `Ki`, `Mi`, `Gi`, `Ti`; bytes take `kB`, `MiB` and so on; times
  `[D-]H:MM:SS`.
* `hf_config` and data paths are relative to the deck, or to the working directory where they come from `--set`;
  `run.dir` is always relative to the working directory.
* A restart continues with the same deck. Keys marked `may change on a restart` are free; a difference in any other is
  refused with the list of differences. `train.steps` is the total since step 0.
TEXT
last=
"$saker" train --help-keys | tail -n +2 | while IFS= read -r line; do
  key=${line%% *}
  if [ "${key%%.*}" != "$last" ]; then
    last=${key%%.*}
    printf '\n## %s\n\n| key | type | default | range | meaning |\n|---|---|---|---|---|\n' "$last"
  fi
  printf '%s\n' "$line" | awk '{
    n = split("1 35 62 78 95", at, " ")
    for (i = 1; i <= n; i++) {
      x = substr($0, at[i], i < n ? at[i + 1] - at[i] : 1000)
      gsub(/^ +| +$/, "", x)
      gsub(/\|/, "\\|", x)
      printf "| %s ", i < n && x != "" ? "`" x "`" : x
    }
    print "|" }'
done
