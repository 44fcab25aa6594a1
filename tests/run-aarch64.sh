#!/bin/sh
# Installs what is missing (Debian 12, Ubuntu 24.04), builds the unit tests for aarch64 and runs them in emulation: some
# fifteen minutes of one core. On an aarch64 machine tests/run.sh is the one to take.
set -eu
cd "$(dirname "$0")/.."
. cmake/bootstrap.sh
install_packages g++-aarch64-linux-gnu qemu-user googletest cmake ninja-build libeigen3-dev nlohmann-json3-dev
cmake --preset aarch64
cmake --build --preset aarch64 -j "$(nproc)"
ctest --preset aarch64 -j "$(nproc)"
