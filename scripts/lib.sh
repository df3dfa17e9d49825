# shellcheck shell=bash
# What scripts/install, demo and test share: it installs what is missing and says what it does. To be sourced.
# Debian 12 or newer, Ubuntu 22.04 or newer.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
log=$root/build/install.log # what apt and pip say; it is shown only when they fail

# One a line: the package, and why it is needed.
# shellcheck disable=SC2034  # for those who source this
packages='
libvirt-daemon-system   runs the nodes
libvirt-clients         virsh, to see whether libvirt answers
qemu-system-x86         the machine that a node runs on
qemu-utils              qemu-img: disks and images
dnsmasq-base            addresses and names on the management network, run by libvirt
iptables                libvirt before 10.4 makes its NAT rules with it and with ebtables
nftables                later ones with this
iproute2                ip and tc, which libvirt calls
kmod                    loads the modules for bridges and tunnels
openssh-client          the way to nodes and to other servers
tmux                    a screen with a pane for each node: shell --all, console --all
python3                 vcluster itself
python3-venv            its virtual environment
python3-libvirt         the libvirt binding, made for the libvirt installed here: pip would need a compiler
mmdebstrap              builds the guest image
debian-archive-keyring  the keys of what that image is made of (Ubuntu does not bring them)
e2fsprogs               mke2fs: the file system of the guest image
'
# shellcheck disable=SC2034
test_packages='
openssh-server          sshd in the servers of scripts/testbed
iputils-ping            whether those servers reach each other
procps                  sysctl and ps, in those servers
sudo                    how those of their users who are not root become it
slirp4netns             their way out
util-linux              unshare and nsenter, which make and enter them
'

say() { printf '%s\n' "$*" >&2; }

step() { printf '\n==> %s\n' "$*" >&2; }

fail() {
    say "$(basename "$0"): $*"
    exit 3
}

require_root() {
    [ "$(id -u)" = 0 ] || fail "this needs root; run it with sudo: sudo $0"
}

# Run a command without input and with its output in the log; when it fails, show where that is and how it ends.
quietly() {
    mkdir -p "$(dirname "$log")"
    printf '$ %s\n' "$*" >>"$log"
    if ! "$@" </dev/null >>"$log" 2>&1; then
        say "failed: $*"
        say "the end of $log:"
        tail -n 15 "$log" >&2
        exit 1
    fi
}

# Those of a list like $packages that are not installed.
missing_packages() {
    local name
    while read -r name _; do
        [ -z "$name" ] || dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
    done <<<"$1"
}

install_packages() {
    command -v apt-get >/dev/null || fail "there is no apt-get here; Debian 12+ and Ubuntu 22.04+ are supported"
    local missing
    mapfile -t missing < <(missing_packages "$1")
    [ "${#missing[@]}" -gt 0 ] || return 0
    require_root
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get -q -o DPkg::Lock::Timeout=300 update
    quietly apt-get -q -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "${missing[@]}"
}

# Make .venv and install the project into it, editable; with the extra "$1" (test) if given. It is done anew only when
# setup.py has changed. The system's packages are visible in it because the libvirt binding is one of them.
install_project() {
    local extra=${1:-} python=$root/.venv/bin/python digest stamp
    digest=$(sha256sum <"$root/setup.py")
    stamp=$root/.venv/installed${extra:+-$extra}
    if "$python" -c '' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then
        return 0
    fi
    say "installing the project into $root/.venv"
    "$python" -m pip --version >/dev/null 2>&1 ||
        quietly /usr/bin/python3 -m venv --clear --system-site-packages "$root/.venv"
    quietly "$python" -m pip install --editable "$root${extra:+[$extra]}"
    echo "$digest" | tee "$root/.venv/installed" >"$stamp"
}

# Put vcluster on the PATH. A file there that is not ours stays.
link_command() {
    local link=/usr/local/bin/vcluster command=$root/.venv/bin/vcluster
    if [ -L "$link" ] && [ ! -e "$link" ] && [[ "$(readlink "$link")" == */.venv/bin/vcluster ]]; then
        rm "$link" # of a checkout that is gone
    fi
    if [ "$(readlink "$link" 2>/dev/null)" = "$command" ]; then
        return 0
    elif [ -e "$link" ] || [ -L "$link" ]; then
        say "$link is something else and stays as it is; call $command instead"
    else
        ln -s "$command" "$link"
        say "vcluster is on the PATH: $link"
    fi
}

# Not `virsh version`: that has QEMU probed first.
libvirt_answers() { virsh --connect qemu:///system list >/dev/null 2>&1; }

start_libvirt() {
    libvirt_answers && return
    say "starting libvirt"
    if [ -d /run/systemd/system ]; then
        start_libvirt_by_systemd
    else
        mkdir -p /var/log/libvirt/qemu
        allow_hidden_mounts
        virtlogd --daemon >>"$log" 2>&1 || true # it runs already; if not, libvirtd does not answer below
        quietly libvirtd --daemon
    fi
    local deadline=$((SECONDS + 30))
    until libvirt_answers; do
        [ "$SECONDS" -lt "$deadline" ] || fail "libvirt did not answer within 30 s; try: virsh -c qemu:///system list"
        sleep 0.2
    done
}

# libvirt moves every mount below /dev into a /dev of QEMU's own, and fails where one hides another, as in some containers.
allow_hidden_mounts() {
    local settings=/etc/libvirt/qemu.conf
    [ -n "$(awk '$2 ~ "^/dev/" { print $2 }' /proc/self/mounts | sort | uniq -d)" ] || return 0
    grep -q '^namespaces' "$settings" && return 0
    say "mounts below /dev hide each other here: setting namespaces = [ ] in $settings"
    printf '\n# Mounts below /dev hide each other on this machine.\nnamespaces = [ ]\n' >>"$settings"
}

start_libvirt_by_systemd() {
    if systemctl cat libvirtd.service >/dev/null 2>&1; then
        quietly systemctl enable --now libvirtd.service
    else # split into one daemon for each kind of thing
        quietly systemctl enable --now virtqemud.socket virtnetworkd.socket virtstoraged.socket
    fi
}

# Say whether libvirt's QEMU can use /dev/kvm. Nothing is changed: whose device it is, is for the machine's owner to say.
check_kvm() {
    local user=libvirt-qemu
    if [ ! -e /dev/kvm ]; then
        say "there is no /dev/kvm: nodes are emulated, which works but is slow"
    elif id "$user" >/dev/null 2>&1 &&
        ! setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups sh -c ': <>/dev/kvm' 2>/dev/null; then
        say "/dev/kvm is closed to libvirt's QEMU, so libvirt probes QEMU at each start (about 16 s a node);" \
            "mend it with: chown root:kvm /dev/kvm && chmod 0660 /dev/kvm"
    fi
}
