#!/bin/sh
# run.sh COMPILER INCLUDE EIGEN PROGRAM...: compiles and runs each program with include paths alone, in the current
# folder.
set -eu
compiler=$1 include=$2 eigen=$3
shift 3
for program in "$@"; do
  for flags in "" "-fno-exceptions -fno-rtti"; do
    echo "$(basename "$program") $flags"
    # shellcheck disable=SC2086  # a list of flags
    "$compiler" -std=c++17 $flags -I"$include" -I"$eigen" "$program" -o include_path_program
    ./include_path_program
  done
done
