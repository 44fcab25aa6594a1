#!/bin/sh
# Installs what is missing (Debian 12, Ubuntu 24.04), builds everything and runs all tests.
set -eu
cd "$(dirname "$0")/.."
. cmake/packages.sh
# shellcheck disable=SC2086  # a list of names
if command -v apt-get >/dev/null 2>&1; then install_packages $build_packages; fi
cmake --preset release
cmake --build --preset release -j "$(nproc)"
ctest --preset release -j "$(nproc)"
