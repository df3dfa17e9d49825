# shellcheck shell=bash
# The owner and mode of /dev/kvm. udev sets them on an ordinary machine: group kvm, mode 0660. Few containers run udev.

kvm=/dev/kvm
qemu_user=libvirt-qemu # libvirt runs QEMU as this user

# Whether QEMU may not open /dev/kvm. libvirt then probes QEMU at each start of a node, for 16 s or more.
kvm_is_closed() {
    [ -e "$kvm" ] && id "$qemu_user" >/dev/null 2>&1 &&
        ! setpriv --reuid "$qemu_user" --regid "$(id -g "$qemu_user")" --init-groups \
            test -r "$kvm" -a -w "$kvm" 2>/dev/null
}

# If /dev/kvm is closed and no udev sets its mode, set what udev sets.
open_kvm() {
    if [ ! -e "$kvm" ]; then
        say "$kvm does not exist: nodes are emulated, which works but is slow"
    elif ! kvm_is_closed; then
        return 0
    elif has_group_kvm && ! kvm_is_managed; then
        set_kvm_mode
    fi
    print_kvm_fix
}

has_group_kvm() { getent group kvm >/dev/null; }

# Whether udev sets the mode of /dev/kvm: udev that runs here and sees the same device, or udev of a machine that shares
# its /dev with this container. In that /dev the device no longer has the kernel's owner and mode.
kvm_is_managed() {
    local process name
    for process in /proc/[0-9]*; do
        name=
        { read -r name <"$process/comm"; } 2>/dev/null || true
        case $name in
        systemd-udevd | udevd) [ "$process/root$kvm" -ef "$kvm" ] && return 0 ;;
        esac
    done
    [ "$(findmnt --noheadings --output FSTYPE --target "$kvm")" = devtmpfs ] && [ "$(kvm_mode)" != "0:0 600" ]
}

kvm_mode() { stat -c '%u:%g %a' "$kvm"; }

# The owner and mode that udev sets.
usual_kvm_mode() { printf '0:%s 660' "$(getent group kvm | cut -d: -f3)"; }

set_kvm_mode() {
    local before
    before=$(kvm_mode)
    record kvm "$before"
    if chown root:kvm "$kvm" 2>/dev/null && chmod 0660 "$kvm" 2>/dev/null; then
        say "no udev sets the mode of $kvm here. Set: owner root, group kvm, mode 0660 (before: $before)"
    else
        say "the owner and mode of $kvm cannot be changed here"
    fi
}

# Print how to open /dev/kvm, if it is closed.
print_kvm_fix() {
    local fix join
    kvm_is_closed || return 0
    fix="$(as_typed "chown root:kvm $kvm") && $(as_typed "chmod 0660 $kvm")"
    join=$(as_typed "usermod --append --groups kvm $qemu_user")
    if ! has_group_kvm; then
        fix="$(as_typed "groupadd --system kvm") && $join && $fix"
    elif [ "$(kvm_mode)" = "$(usual_kvm_mode)" ]; then
        fix=$join
    fi
    say "$kvm is closed to QEMU's user $qemu_user, so each node starts 16 s or more later."
    say "Fix: $fix"
}

# Set the owner and mode of /dev/kvm that install found, unless they were changed again since then.
restore_kvm_mode() {
    local before owner mode
    [ -e "$records/kvm" ] || return 0
    before=$(cat "$records/kvm")
    if [ -e "$kvm" ] && has_group_kvm && [ "$(kvm_mode)" = "$(usual_kvm_mode)" ]; then
        read -r owner mode <<<"$before"
        chown "$owner" "$kvm"
        chmod "$mode" "$kvm"
        say "the owner and mode of $kvm are as before: $before"
    fi
    rm "$records/kvm"
}
