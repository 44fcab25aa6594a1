#!/bin/sh
# no_foreign_code.sh OBJDUMP GENERIC AVX512: the linker keeps either copy of a function that both objects emit by the
# same name. Fails if there is one whose code differs: the library's, or one of the standard library's or Eigen's.
set -eu
export LC_ALL=C # sort, join and objdump must agree
objdump=$1 generic=$2 avx512=$3

# weak functions: "NAME SECTION", sorted by name (two names may share a section)
functions() { "$objdump" -t "$1" | awk '$2 == "w" && $3 == "F" { print $NF, $4 }' | sort; }
code() { "$objdump" -d --no-show-raw-insn -j "$2" "$1" | grep '^ '; }

functions "$generic" >generic_functions
functions "$avx512" >avx512_functions
for unit in generic avx512; do
  grep -q asymkv ${unit}_functions || { echo "no function of the library in the $unit unit" && exit 1; }
done
failed=0
join generic_functions avx512_functions >shared_functions
while read -r name generic_section avx512_section; do
  code "$generic" "$generic_section" >generic_code
  code "$avx512" "$avx512_section" >avx512_code
  if ! cmp -s generic_code avx512_code; then
    failed=1
    printf '%s\n' "$name" | c++filt
  fi
done <shared_functions
echo "Functions in both units: $(wc -l <shared_functions)"
exit $failed
