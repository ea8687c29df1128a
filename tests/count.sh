#!/usr/bin/env bash
# count.sh FILE.trs...: adds up the TAP results that automake's driver left, prints as the last line
# `N passed, N failed[, N skipped]`, and fails unless something passed and nothing failed.
set -u
passed=0 failed=0 skipped=0
for trs in "$@"; do
  if ! grep -q '^:test-result:' "$trs" 2>/dev/null; then
    echo "${trs%.trs}: no result"
    failed=$((failed + 1))
    continue
  fi
  while read -r _ result _; do
    case $result in
    PASS) passed=$((passed + 1)) ;;
    SKIP) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
    esac
  done < <(grep '^:test-result:' "$trs")
done
line="$passed passed, $failed failed"
[ "$skipped" -gt 0 ] && line="$line, $skipped skipped"
echo "$line"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
