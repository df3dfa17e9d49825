# shellcheck shell=bash
# libvirt: started by systemd, or by hand where systemd does not run.

qemu_conf=/etc/libvirt/qemu.conf
qemu_conf_lines=$'\n# Mounts below /dev hide each other on this machine.\nnamespaces = [ ]\n'

# Not `virsh version`: for that, libvirt probes QEMU first.
libvirt_answers() { virsh --connect qemu:///system list >/dev/null 2>&1; }

start_libvirt() {
    libvirt_answers && return
    say "starting libvirt"
    if [ -d /run/systemd/system ]; then
        start_libvirt_by_systemd
    else
        start_libvirt_by_hand
    fi
    local deadline=$((SECONDS + 30))
    until libvirt_answers; do
        [ "$SECONDS" -lt "$deadline" ] ||
            fail "libvirt did not answer within 30 s; its error: $(as_typed "virsh -c qemu:///system list")"
        sleep 0.2
    done
}

start_libvirt_by_systemd() {
    if systemctl cat libvirtd.service >/dev/null 2>&1; then
        quietly systemctl enable --now libvirtd.service
    else # newer versions have one daemon for each kind of object
        quietly systemctl enable --now virtqemud.socket virtnetworkd.socket virtstoraged.socket
    fi
}

start_libvirt_by_hand() {
    open_log
    mkdir -p /var/log/libvirt/qemu
    allow_hidden_mounts
    virtlogd --daemon >>"$log" 2>&1 || true # it may run already; without it, libvirtd does not answer in time
    quietly libvirtd --daemon
}

# libvirt moves every mount below /dev into a /dev for QEMU. In some containers one mount hides another, and that fails.
allow_hidden_mounts() {
    [ -n "$(awk '$2 ~ "^/dev/" { print $2 }' /proc/self/mounts | sort | uniq -d)" ] || return 0
    grep -q '^namespaces' "$qemu_conf" && return 0
    say "mounts below /dev hide each other here: setting namespaces = [ ] in $qemu_conf"
    printf '%s' "$qemu_conf_lines" >>"$qemu_conf"
}

# Remove the lines that allow_hidden_mounts added.
restore_qemu_conf() {
    local text rest
    [ -r "$qemu_conf" ] || return 0
    text=$(cat "$qemu_conf" && echo .)
    text=${text%.}
    rest=${text/"$qemu_conf_lines"/}
    [ "$rest" != "$text" ] || return 0
    cp --preserve "$qemu_conf" "$qemu_conf.new"
    printf '%s' "$rest" >"$qemu_conf.new"
    mv "$qemu_conf.new" "$qemu_conf"
    say "removed the line namespaces = [ ] from $qemu_conf"
}

# Process ids of daemons that run without systemd.
libvirt_daemons() {
    [ ! -d /run/systemd/system ] || return 0
    local file number
    for file in /run/libvirtd.pid /run/virtlogd.pid; do
        number=$(cat "$file" 2>/dev/null || true)
        if [ -n "$number" ] && kill -0 "$number" 2>/dev/null; then echo "$number"; fi
    done
}
