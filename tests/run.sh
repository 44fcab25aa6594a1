#!/bin/sh
# Installs what is missing (Debian 12, Ubuntu 24.04), builds everything and runs all tests.
set -eu
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh
build_release
ctest --preset release -j "$(nproc)"
