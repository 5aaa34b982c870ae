#!/usr/bin/env bash
# The man page of one of our programs, from its --help and --version, on standard output.
#
#   deploy/package/man_page.sh PROGRAM
#
# It reads what server/flag_help.cc writes: the first line is "NAME: what it does"; lines that begin with two blanks and the name show how
# it is called; a line at the margin begins a group or, where no flag follows, is text.
set -euo pipefail
self=$(realpath "$0")
case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$self"; exit 0 ;;
  '') printf 'man_page: no program given (see --help)\n' >&2; exit 1 ;;
esac
program=$1
version=$("$program" --version | awk 'NR == 1 {print $2}')
"$program" --help | awk -v version="$version" '
  function escaped(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    if (text ~ /^[.\x27]/) text = "\\&" text
    return text
  }
  function end_text() {
    if (heading == "") return
    print in_flags ? ".SH NOTES" : ".PP"
    print heading
    heading = ""
    in_flags = 0
  }
  NR == 1 {
    name = $0
    sub(/:.*/, "", name)
    about = substr($0, length(name) + 3)
    sub(/\.$/, "", about)
    printf ".TH %s 1 \"\" \"fewbit %s\" \"fewbit\"\n.SH NAME\n%s \\- %s\n", toupper(name), version, escaped(name), escaped(about)
    next
  }
  /^$/ { end_text(); next }
  /^  --/ {
    if (!options) print ".SH OPTIONS"
    options = 1
    if (heading != "") print ".SS " heading
    heading = ""
    in_flags = 1
    flag = $1
    text = $0
    sub(/^  --[^ ]* */, "", text)
    printf ".TP\n\\fB%s\\fR\n%s\n", escaped(flag), escaped(text)
    next
  }
  /^          / && in_flags {
    sub(/^ */, "")
    print escaped($0)
    next
  }
  /^  / {
    print synopsis ? ".br" : ".SH SYNOPSIS\n.nh\n.ad l"
    synopsis = 1
    sub(/^  /, "")
    print escaped($0)
    next
  }
  { heading = heading == "" ? escaped($0) : heading "\n" escaped($0) }
  END { end_text() }
'
