# shellcheck shell=bash
# Code that the scripts here share. A script sources it in its first line. Debian 12 or newer.
# It holds messages, hints and packages; the files in lib/ hold the rest.

# `sh scripts/install` runs this in sh, up to this line.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"

set -euo pipefail
set +o posix
export -n SHELLOPTS BASHOPTS # programs that are called do not inherit these options
umask 022 # other users run the installed command
script=("$0" "$@")
callers_path=$PATH
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Variables change what Python, pip, venv and shells do. Of those, only the sources of packages stay.
control_environment() {
    local name
    for name in "${!PYTHON@}" "${!PIP_@}" VIRTUAL_ENV CDPATH BASH_ENV ENV; do
        case $name in
        PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_FIND_LINKS | PIP_NO_INDEX | PIP_CONFIG_FILE | PIP_CONSTRAINT) ;;
        PIP_CERT | PIP_CLIENT_CERT | PIP_TRUSTED_HOST | PIP_PROXY | PIP_KEYRING_PROVIDER) ;;
        PIP_TIMEOUT | PIP_DEFAULT_TIMEOUT | PIP_RETRIES | PIP_CACHE_DIR | PIP_NO_CACHE_DIR) ;;
        PIP_DISABLE_PIP_VERSION_CHECK | PYTHONDONTWRITEBYTECODE) ;;
        *) unset "$name" ;;
        esac
    done
    export PYTHONNOUSERSITE=1 # packages in the home of one user do not count: all users run the command
    export PIP_USER=0         # the configuration of pip may ask for that home
}

control_environment
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
log=$root/build/install.log          # the output of apt and pip; a message shows its end when they fail
records=/var/lib/vcluster/install    # what uninstall must know about the machine as it was

# Links outside the checkout that install makes and uninstall removes, one a line: the link, and its target here.
links='
/usr/local/bin/vcluster                                   .venv/bin/vcluster
/usr/local/share/man/man1/vcluster.1                      docs/man/vcluster.1
/usr/local/share/man/man5/vcluster-config.5               docs/man/vcluster-config.5
/usr/local/share/bash-completion/completions/vcluster     scripts/completions/bash/vcluster
/usr/local/share/zsh/site-functions/_vcluster             scripts/completions/zsh/_vcluster
/usr/local/share/fish/vendor_completions.d/vcluster.fish  scripts/completions/fish/vcluster.fish
'

# Packages, one a line: the name, and the reason.
# shellcheck disable=SC2034  # the scripts use it
packages='
libvirt-daemon-system   runs the nodes
libvirt-clients         virsh, to see whether libvirt answers
qemu-system-x86         the machine that a node runs on
qemu-utils              qemu-img: disks and images
dnsmasq-base            addresses and names on the management network, run by libvirt
iptables                libvirt before 10.4 makes its NAT rules with it and with ebtables
nftables                later versions of libvirt use this instead
iproute2                ip and tc, which libvirt calls
kmod                    loads the modules for bridges and tunnels
openssh-client          connects to nodes and to other servers
tmux                    a screen with a pane for each node: shell --all, console --all
python3                 runs vcluster
python3-venv            makes its virtual environment
python3-libvirt         the libvirt binding for the installed libvirt; pip needs a compiler for it
mmdebstrap              builds the guest image
debian-archive-keyring  the keys for the packages of that image (Ubuntu does not install them)
e2fsprogs               mke2fs: the file system of the guest image
'
# shellcheck disable=SC2034
test_packages='
openssh-server          sshd in the servers of scripts/testbed
iputils-ping            tests whether those servers reach each other
procps                  sysctl and ps, in those servers
sudo                    makes users of those servers root
slirp4netns             their route to the outside
strace                  shows the system calls of a command, for tests of killed commands
tshark                  reads captured frames, as users of Wireshark do
iperf3                  measures traffic through the switch
util-linux              unshare and nsenter, which make and enter them
'

# --- messages --------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

step() { printf '\n==> %s\n' "$*" >&2; }

# Print why the script stops, and stop: this machine lacks something.
fail() {
    say "$(basename -- "$0"): $*"
    exit 3
}

# Arguments as a shell reads them again: a path with spaces stays one argument.
quoted() {
    local arguments
    printf -v arguments '%q ' "$@"
    printf '%s' "${arguments% }"
}

# A command that needs root, as the reader types it: with sudo when sudo is installed and the reader is not root.
as_typed() {
    if { [ "$(id -u)" != 0 ] || [ "${SUDO_USER:-root}" != root ]; } && has_sudo; then
        printf 'sudo %s' "$*"
    else
        printf '%s' "$*"
    fi
}

has_sudo() { [ -x "$(type -P sudo)" ]; }

# The command line of this script, as the reader types it again.
this_command() {
    local name=${script[0]}
    [[ $name == */* ]] || name=./$name
    quoted "$name" "${script[@]:1}"
}

require_root() {
    [ "$(id -u)" != 0 ] || return 0
    has_sudo || fail "this needs root, and sudo is not installed here. Log in as root, and run: $(this_command)"
    fail "this needs root: $(as_typed "$(this_command)")"
}

# Run a command without input and with its output in the log. If it fails, print the end of the log and stop.
quietly() {
    open_log
    printf '$ %s\n' "$(quoted "$@")" >>"$log"
    if ! "$@" </dev/null >>"$log" 2>&1; then
        say "failed: $(quoted "$@")"
        say "the end of $log:"
        tail -n 15 "$log" >&2
        exit 1
    fi
}

open_log() {
    require_writable "$root" "$root/build" "$log"
    mkdir -p "$root/build"
}

# Stop if this user may not write to one of these paths. A path that does not exist is skipped.
require_writable() {
    local path owner
    for path in "$@"; do
        if [ -e "$path" ] && [ ! -w "$path" ]; then
            [ "$(id -u)" != 0 ] || fail "root cannot write to $path; is its file system read-only?"
            owner=$(stat -c %U "$path")
            fail "$(id -un) cannot write to $path, which belongs to $owner. Run: $(as_typed "$(this_command)")"
        fi
    done
}

# --- packages --------------------------------------------------------------------------------------------------------

# The packages of a list like $packages that are not installed.
missing_packages() {
    local name
    while read -r name _; do
        [ -z "$name" ] || is_installed "$name" || echo "$name"
    done <<<"$1"
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
    command -v apt-get >/dev/null || fail "apt-get is not installed; vcluster needs Debian 12 or newer"
    local missing
    mapfile -t missing < <(missing_packages "$1")
    [ "${#missing[@]}" -gt 0 ] || return 0
    require_root
    say "installing ${missing[*]}"
    record_packages "${missing[@]}"
    export DEBIAN_FRONTEND=noninteractive
    if [ -n "$(ls -A /var/lib/dpkg/updates)" ]; then
        say "an earlier installation of packages was interrupted; dpkg completes it first"
        quietly dpkg --configure -a
    fi
    quietly apt-get -q -o DPkg::Lock::Timeout=300 update
    quietly apt-get -q -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "${missing[@]}"
}

# Stop unless the machine has the versions of Debian 12 or newer ones: older ones were never tried.
check_versions() {
    check_version Python 3.11 "$(python3 --version)"
    check_version libvirt 9.0 "$(virsh --version)"
    check_version QEMU 7.2 "$(qemu-system-x86_64 --version)"
}

check_version() {
    local found
    found=$(grep -o '[0-9][0-9.]*' <<<"$3" | head -n 1)
    printf '%s\n' "$2" "$found" | sort --check=quiet --version-sort ||
        fail "$1 $found is too old: vcluster needs $2 or newer, as Debian 12 has"
}

# Add names to the record of packages that these scripts installed. It is for the list that uninstall prints.
record_packages() {
    local names
    names=$({ cat "$records/packages" 2>/dev/null || true; printf '%s\n' "$@"; } | sort -u)
    record packages "$names"
}

# Keep a text under a name, for uninstall.
record() {
    mkdir -p "$records"
    printf '%s\n' "$2" >"$records/$1.new"
    mv "$records/$1.new" "$records/$1"
}

for part in project links kvm libvirt; do
    # shellcheck disable=SC1090
    . "$root/scripts/lib/$part.sh"
done
unset part

# Everything that `vcluster` needs on this machine.
install_everything() {
    step "packages"
    install_packages "$packages"
    check_versions
    step "vcluster and its libraries"
    install_project ""
    make_links
    check_command
    step "libvirt"
    start_libvirt
    open_kvm
}
