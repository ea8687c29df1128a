#!/usr/bin/env bash
# fetch-text.sh FOLDER: free English prose as FOLDER/train/*.txt and FOLDER/valid/*.txt, one document
# a file. Takes the first Debian package that can be downloaded (nothing is installed); where there
# is none, text that this machine has already. Keeps what an earlier call has left in FOLDER.
set -euo pipefail
out=${1:?usage: fetch-text.sh FOLDER}
least=1000000 # bytes that count as enough to train on
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/text"

# unpack PACKAGE...: into $tmp/pkg, without touching the system.
unpack() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  local deb opts=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=20)
  (cd "$tmp" && apt-get "${opts[@]}" download "$@") >/dev/null 2>&1 || return 1
  for deb in "$tmp"/*.deb; do dpkg-deb -x "$deb" "$tmp/pkg" && rm "$deb"; done
}

# The King James Bible, one file a book, one verse a line. Its reader program decodes the data file,
# which it looks for in the current folder.
bible() {
  unpack bible-kjv-text bible-kjv || return 1
  local print=(../bin/bible -f "gen1:1-rev22:21")
  if ! (cd "$tmp/pkg/usr/lib" && "${print[@]}" </dev/null >"$tmp/verses" 2>/dev/null); then
    unpack libreadline8 || return 1
    (cd "$tmp/pkg/usr/lib" && LD_LIBRARY_PATH=$(echo "$tmp"/pkg/lib/*-linux-*) \
      "${print[@]}" </dev/null >"$tmp/verses" 2>/dev/null) || return 1
  fi
  awk -v dir="$tmp/text" '
    match($1, /[0-9]+:[0-9]+$/) {
      book = substr($1, 1, RSTART - 1)
      if (!(book in order)) order[book] = ++books
      sub(/^[^ ]+ /, "")
      print > sprintf("%s/%02d-%s.txt", dir, order[book], book)
    }' "$tmp/verses"
}

# An Anarchist FAQ, one file a section, without Markdown's marks.
anarchism() {
  unpack anarchism || return 1
  local file
  for file in "$tmp"/pkg/usr/share/doc/anarchism/markdown/sec*.md.gz; do
    gzip -dc "$file" | sed -E 's/^> ?//; s/\*\*|_//g; s/\[([^]]*)\]\([^)]*\)/\1/g' \
      >"$tmp/text/$(basename "$file" .md.gz).txt"
  done
}

# Short quotations, one file a topic.
fortunes() {
  unpack fortunes || return 1
  local file
  for file in "$tmp"/pkg/usr/share/games/fortunes/*; do
    case $file in *.dat | *.u8) continue ;; esac
    sed 's/^%$//' "$file" >"$tmp/text/$(basename "$file").txt"
  done
}

# Text that is on this machine: licences, documentation, Perl's manual, manual pages; 4 MB at most.
local_text() {
  local file total=0 n=0
  while IFS= read -r file; do
    n=$((n + 1))
    case $file in
    *.gz) gzip -dc "$file" ;;
    *) cat "$file" ;;
    esac 2>/dev/null | # without the marks of manual pages
      sed -E 's/^\.[A-Za-z\\"]+ ?//; s/\\f[BIRP]//g; s/\\-/-/g' >"$tmp/text/$n.txt" || true
    total=$((total + $(wc -c <"$tmp/text/$n.txt")))
    [ $total -gt 4000000 ] && break
  done < <(find -L /usr/share/common-licenses /usr/share/perl /usr/share/man/man? /usr/share/doc \
    -type f \( -path '*/common-licenses/*' -o -name '*.pod' -o -path '*/man?/*' -o -name 'README*' \
    -o -name 'NEWS*' -o -name 'copyright' \) -size +1k 2>/dev/null | sort | awk '!seen[$0]++')
}

# prose NAME FUNCTION: true when the function gave enough text.
prose() {
  rm -rf "$tmp/text" && mkdir "$tmp/text"
  "$2" || return 1
  [ "$(cat "$tmp"/text/* 2>/dev/null | wc -c)" -ge $least ] || return 1
  echo "text: $1"
}

if [ -n "$(ls "$out/train" "$out/valid" 2>/dev/null)" ]; then
  echo "text: kept what is in $out"
  exit 0
fi
if [ "$(id -u)" = 0 ] && ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
  apt-get -qq update >/dev/null 2>&1 || true
fi
prose "Debian package bible-kjv-text, the King James Bible" bible ||
  prose "Debian package anarchism, An Anarchist FAQ" anarchism ||
  prose "Debian package fortunes, quotations" fortunes ||
  prose "no package could be fetched: documentation found on this machine" local_text ||
  { echo "fetch-text.sh: no package source and too little text on this machine" >&2; exit 1; }

# Every twentieth document is held out for validation.
mkdir -p "$out/train" "$out/valid"
n=0 held=0
for file in "$tmp"/text/*.txt; do
  [ -s "$file" ] || continue
  n=$((n + 1))
  if [ $((n % 20)) = 10 ]; then
    mv "$file" "$out/valid/"
    held=$((held + 1))
  else
    mv "$file" "$out/train/"
  fi
done
echo "$((n - held)) documents, $(cat "$out"/train/* | wc -c) bytes to train on;" \
  "$held documents, $(cat "$out"/valid/* | wc -c) bytes to validate"
