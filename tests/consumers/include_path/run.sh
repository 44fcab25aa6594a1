#!/bin/sh
# run.sh COMPILER INCLUDE EIGEN PROGRAM...: compiles and runs each program with include paths alone, in the current
# folder.
set -eu
compiler=$1 include=$2 eigen=$3
shift 3
# the first with the kernels in a unit of their own, which the other unit must want
printf '#define ASYMKV_COMPILE_KERNELS\n#include <asymkv/asymkv.hpp>\n' >kernels.cpp
"$compiler" -std=c++17 -I"$include" -I"$eigen" -c kernels.cpp -o kernels.o
"$compiler" -std=c++17 -DASYMKV_COMPILED_KERNELS -I"$include" -I"$eigen" -c "$1" -o program.o
nm program.o | grep -q 'U .*table_of'
"$compiler" program.o kernels.o -o include_path_program
./include_path_program
for program in "$@"; do
  for flags in "" "-fno-exceptions -fno-rtti"; do
    echo "$(basename "$program") $flags"
    # shellcheck disable=SC2086  # a list of flags
    "$compiler" -std=c++17 $flags -I"$include" -I"$eigen" "$program" -o include_path_program
    ./include_path_program
  done
done
