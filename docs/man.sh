#!/usr/bin/env bash
# man.sh SAKER HELP2MAN: the manual page on stdout, made of what the program says of itself.
set -eu
saker=${1:?give the program} help2man=${2:?give help2man}
more=$(mktemp)
trap 'rm -f "$more"' EXIT
verbatim() { # lines as they are, for roff
  printf '.nf\n'
  sed -e 's/\\/\\\\/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/"
  printf '.fi\n'
}
{
  printf '[verbs]\n'
  for verb in $("$saker" --help | awk '/^  [a-z]/ && $1 != "saker" { print $1 }'); do
    printf '.SS %s\n' "$verb"
    "$saker" help "$verb" | verbatim
  done
  printf '[deck keys]\n'
  "$saker" train --help-keys | tail -n +2 | while IFS= read -r line; do
    printf '.TP\n.B %s\n' "${line%% *}"
    printf '%s\n' "${line#* }" | sed -e 's/^ *//' -e 's/  */ /g' -e 's/\\/\\\\/g'
  done
  printf '[files]\n'
  printf 'run.dir/{deck.yaml, run.log, metrics.jsonl, status.json, loss.png, checkpoints/step\\-N/}: see docs/files.md.\n'
} >"$more"
"$help2man" -N -s 1 -n 'train Falcon\-H1 hybrid language models with MPI' --include "$more" "$saker"
