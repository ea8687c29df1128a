#!/usr/bin/env bash
# The include direction of STYLE.md: base <- kernels, base <- io, all of these <- src <- tests.
set -u
cd "${SAKER_SRCDIR:-$(dirname "$0")/..}" || exit 1
# shellcheck source=tests/tap.sh
. tests/tap.sh

# none WHAT LINES: holds when there are no lines.
none() {
  [ -z "$2" ]
  ok $? "$1"
  [ -z "$2" ] || printf '%s\n' "$2" | sed 's/^/# /'
}

# forbid WHAT FORBIDDEN ALLOWED PATH...: no #include under the paths whose operand ("file" or
# <file>) matches FORBIDDEN, save those that match ALLOWED; both are extended regular expressions.
forbid() {
  local what=$1 forbidden=$2 allowed=$3 files lines bad
  shift 3
  files=$(find "$@" -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \))
  # shellcheck disable=SC2086 # one word per file
  lines=$(grep -nE '^[[:space:]]*#[[:space:]]*include' $files /dev/null)
  bad=$(printf '%s\n' "$lines" | grep -E "include[[:space:]]*$forbidden" |
    grep -vE "include[[:space:]]*$allowed")
  [ -n "$lines" ] || bad="no includes found: were the files moved?"
  none "$what" "$bad"
}

base='"src/(base|agree|sum)\.h"'
forbid "every include is written from the top" '"' '"(src|kernels|io|tests)/' src kernels io tests
forbid "the base includes nothing else of ours" '"' "$base" src/base.[ch] src/agree.[ch] src/sum.[ch]
forbid "kernels include only kernels, base.h and sum.h" '"' '"(kernels/|src/(base|sum)\.h")' kernels
forbid "kernels know no MPI, HDF5, YAML, JSON" '<(mpi|hdf5|libfyaml|jansson)\.h>' '@' kernels
forbid "io includes only io and the base" '"' "(\"io/|$base)" io
forbid "io knows no device" '<(cuda|nccl|cublas|cblas|blis)' '@' io
forbid "src does not include tests" '"tests/' '@' src

none "no #if on CUDA outside the device folder and comm_nccl.c" \
  "$(grep -rnE '#[[:space:]]*(if|ifdef|ifndef|elif).*CUDA' src io | grep -v '^src/comm_nccl\.c:')"
none "every source is listed in its folder's local.mk" \
  "$(find src kernels io tests -path tests/fuzz -prune -o \( -name '*.[ch]' -o -name '*.cu' \) -print | while read -r file; do
    grep -qF "$file" "${file%/*}/local.mk" || echo "$file" # tests/fuzz is listed as a folder
  done)"
finish
