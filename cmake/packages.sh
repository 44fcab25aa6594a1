# packages.sh: sourced by tests/run.sh and examples/demo.sh. install_packages NAME... installs those of Debian's or
# Ubuntu's packages that are missing, and says so.
install_packages() {
  missing=
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  echo "Installing with apt-get:$missing"
  $as_root apt-get update -qq
  # shellcheck disable=SC2086  # a list of names
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

build_packages="g++ make cmake libeigen3-dev libgtest-dev libbenchmark-dev libcli11-dev nlohmann-json3-dev"
