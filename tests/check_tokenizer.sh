#!/usr/bin/env bash
# `make check-tokenizer`: a virtual environment in the build folder with what the comparisons need, then both of them.
# The table of speeds goes to tokenizer-compare/tokenizer.json (kept in docs/bench).
set -u
here=$(cd "$(dirname "$0")" && pwd)
work=$PWD/tokenizer-compare
mkdir -p "$work"
if ! [ -x "$work/venv/bin/python" ]; then
  python3 -m venv "$work/venv" || exit 1
fi
"$work/venv/bin/pip" -q install tokenizers numpy h5py && "$work/venv/bin/pip" -q install --no-deps megatron-core || exit 1
rc=0
"$work/venv/bin/python" "$here/import_compare.py" --saker ./saker --mpirun "${MPIRUN:-mpirun}" || rc=1
"$work/venv/bin/python" "$here/tokenizer_compare.py" --saker ./saker --mpirun "${MPIRUN:-mpirun}" --work "$work" \
  --json "$work/tokenizer.json" || rc=1
exit $rc
