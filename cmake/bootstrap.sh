# bootstrap.sh: sourced by tests/run.sh, tests/run-aarch64.sh and examples/demo.sh: installs what a bare Debian 12 or
# Ubuntu 24.04 lacks, and builds the preset `release`.

# install_packages NAME...: installs those packages that are missing, as root or through sudo, and says so. Elsewhere
# than on Debian and its kin CMake says what it misses.
install_packages() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || return 0
  missing=
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  as_root=
  if [ "$(id -u)" != 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || {
      echo "Missing:$missing. Install them, or run this as root." >&2
      return 1
    }
  fi
  echo "Installing with ${as_root:+$as_root }apt-get:$missing"
  # shellcheck disable=SC2086  # lists of words
  $as_root apt-get update -qq &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing >/dev/null
}

# build_release TARGET...: in the project's folder; everything without a TARGET
build_release() {
  install_packages g++ cmake ninja-build libeigen3-dev libgtest-dev libbenchmark-dev libcli11-dev \
    nlohmann-json3-dev libyaml-cpp-dev libopenmpi-dev openmpi-bin
  cmake --preset release
  cmake --build --preset release -j "$(nproc)" ${1:+--target "$@"}
}
