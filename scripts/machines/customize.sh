#!/bin/sh
# Work in the tree of a machine after its packages are installed: customize.sh TREE. Called by mmdebstrap.
# AUTHORIZED_KEY is the public key that logs in as student. CERTIFICATES is the file of trusted authorities.
# CHECKOUT is a folder that becomes ~student/vcluster. Its virtual environment is made too, unless IS_BARE is yes.
set -eu

tree=$1

echo machine >"$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 machine\n' >"$tree/etc/hosts"
printf 'LABEL=vcluster-machine / ext4 noatime,noinit_itable 0 1\n' >"$tree/etc/fstab"
rm -f "$tree/etc/resolv.conf"
printf 'nameserver 172.30.253.3\n' >"$tree/etc/resolv.conf"
cp "$CERTIFICATES" "$tree/etc/ssl/certs/ca-certificates.crt"

# eth0 leads to the outside. eth1 gets its settings when the machine is on the LAN.
cat >"$tree/etc/network/interfaces" <<'EOF'
source /etc/network/interfaces.d/*
auto lo
iface lo inet loopback
auto eth0
iface eth0 inet static
    address 172.30.253.15/24
    gateway 172.30.253.2
EOF

# An emulated machine takes many minutes for what these do, and its clock jumps when it resumes.
chroot "$tree" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer logrotate.timer man-db.timer
sed -i 's/^update_initramfs=.*/update_initramfs=no/' "$tree/etc/initramfs-tools/update-initramfs.conf"

chroot "$tree" useradd --create-home --shell /bin/bash student
echo 'student ALL=(ALL:ALL) NOPASSWD: ALL' >"$tree/etc/sudoers.d/student"
chmod 0440 "$tree/etc/sudoers.d/student"
install -d -m 0700 "$tree/home/student/.ssh"
printf '%s\n' "$AUTHORIZED_KEY" >"$tree/home/student/.ssh/authorized_keys"
# One connection carries all commands of scripts/machine.
printf 'UseDNS no\nMaxSessions 100\nMaxStartups 100\n' >"$tree/etc/ssh/sshd_config.d/machine.conf"

cp -R "$CHECKOUT" "$tree/home/student/vcluster"
if [ "$IS_BARE" = no ]; then
    # shellcheck disable=SC2016  # the inner shell expands it
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$tree" \
        bash -c '. /home/student/vcluster/scripts/lib.sh && install_project ""' install
fi
chroot "$tree" chown -R student:student /home/student
