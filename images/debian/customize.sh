#!/bin/sh
# Turn a freshly installed Debian into the guest image. The builder calls it with two folders: the recipe, and the root
# directory of the image.
set -eu
umask 022
recipe=$1
root=$2
here=$(dirname "$(readlink -f "$0")")

in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive "$@"; }

# --- our files ------------------------------------------------------------------------------------
for overlay in "$here/overlay" "$recipe/overlay"; do
    cp -R --no-preserve=mode,ownership "$overlay/." "$root/"
done
chmod 755 "$root/usr/lib/vcluster/seed" "$root/usr/lib/vcluster/dhcp" "$root/usr/lib/vcluster/clone"
install -m 644 "$here/../guest/vcluster-ready.service" "$root/etc/systemd/system/"

# --- MPI -------------------------------------------------------------------------------------------------------------------
mkdir -p "$root/usr/lib/vcluster" "$root/var/lib/nfs/v4recovery" # the latter for modprobe.d/vcluster.conf
install -m 644 "$here/../guest/mpi-check.c" "$here/../guest/mpi-measure.c" "$root/usr/lib/vcluster/"
in_root mpicc -O2 -Wall -o /usr/lib/vcluster/mpi-check /usr/lib/vcluster/mpi-check.c -ldl
in_root mpicc -O2 -Wall -o /usr/lib/vcluster/mpi-measure /usr/lib/vcluster/mpi-measure.c

# --- accounts -------------------------------------------------------------------------------------
# The cluster's user has the same number on every image.
# No account has a password: "*" allows keys only. With "!" an sshd without PAM would refuse keys too.
in_root useradd --uid 2000 --user-group --create-home --shell /bin/bash --password '*' mpiuser
in_root usermod --password '*' root

# --- the prompt -----------------------------------------------------------------------------------
# The console's shell of a clone began in the template, and \h is the host name of that time. So read the name before each
# prompt.
cat >>"$root/etc/bash.bashrc" <<'END'
PROMPT_COMMAND='read -r HOSTNAME </proc/sys/kernel/hostname'
PS1=${PS1//\\h/\$HOSTNAME}
END

# --- units ----------------------------------------------------------------------------------------
system=$root/etc/systemd/system
mkdir -p "$system/vcluster-late.target.wants" "$root/etc/systemd/system-generators" "$root/etc/tmpfiles.d"

# A late unit does not start while the flag exists; vcluster-late.target starts it after the flag is removed.
make_late() {
    mkdir -p "$system/$1.d"
    printf '[Unit]\nAfter=vcluster-seed.service\nConditionPathExists=!/run/vcluster/hurry\n' >"$system/$1.d/late.conf"
    case $1 in # the server's work in the node goes first
    systemd-*.service | kmod-*.service) printf '[Service]\nNice=19\n' >>"$system/$1.d/late.conf" ;;
    esac
    case $1 in
    *@*.service) ln -sf "/usr/lib/systemd/system/${1%%@*}@.service" "$system/vcluster-late.target.wants/$1" ;;
    *) ln -sf "../$1" "$system/vcluster-late.target.wants/$1" ;;
    esac
}

# A fallback unit does not start when vcluster-seed has applied the seed.
make_fallback() {
    mkdir -p "$system/$1.d"
    printf '[Unit]\nAfter=vcluster-seed.service\nConditionPathExists=!/run/vcluster/seeded\n' >"$system/$1.d/fallback.conf"
}

# Hide a file of the image's packages by a link of the same name in /etc.
hide() {
    [ -e "$root/usr/lib/$1" ] || { echo "units.txt: $1 does not exist in this image" >&2 && exit 1; }
    ln -sf /dev/null "$root/etc/$1"
}

cat "$here/units.txt" "$recipe/units.txt" | while read -r verb name _; do
    case $verb in
    '' | '#'*) ;;
    enable | disable | mask) in_root systemctl --quiet "$verb" "$name" ;;
    late) make_late "$name" ;;
    fallback) make_fallback "$name" ;;
    generator) hide "systemd/system-generators/$name" ;;
    udev) hide "udev/rules.d/$name" ;;
    tmpfiles) hide "tmpfiles.d/$name" ;;
    *) echo "units.txt: $verb is not a verb" >&2 && exit 1 ;;
    esac
done
# Without its generator, which units.txt disables, cloud-init.target needs a static link.
in_root systemctl --quiet add-wants multi-user.target cloud-init.target serial-getty@ttyS0.service

# --- this recipe ----------------------------------------------------------------------------------
[ ! -e "$recipe/customize.sh" ] || "$recipe/customize.sh" "$root"

# --- boot -----------------------------------------------------------------------------------------
# Only GRUB's two boot sectors are needed, so its packages are unpacked in a temporary folder, not installed.
version=$(basename "$(readlink "$root/vmlinuz")" | sed 's/^vmlinuz-//')
in_root mktirfs -o "/boot/initrd.img-$version" "$version"
mkdir "$root/tmp/grub"
# The package systemd-resolved makes this a link to a file that only a running system has.
rm -f "$root/etc/resolv.conf"
cp /etc/resolv.conf "$root/etc/resolv.conf"
in_root sh -euc 'cd /tmp/grub; apt-get -qq download grub-pc-bin grub-common libdevmapper1.02.1
    for package in *.deb; do dpkg-deb -x "$package" .; done
    libraries=$(dirname "$(find . -name libdevmapper.so.1.02.1)")
    echo "set prefix=(hd0,msdos1)/boot/grub" >early.cfg
    LD_LIBRARY_PATH=$libraries usr/bin/grub-mkimage -O i386-pc -d usr/lib/grub/i386-pc -c early.cfg \
        -p "(hd0,msdos1)/boot/grub" -o /boot/grub/core.img \
        biosdisk part_msdos ext2 linux normal configfile serial terminal boot echo ls reboot halt
    cp usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img'
rm -r "$root/tmp/grub"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# --- remove identities and unneeded files ---------------------------------------------------------
# systemd fills an empty machine-id at boot; with a missing one it would run its first-boot presets.
: >"$root/etc/machine-id"
echo "# The kernel's arguments mount the root file system with its final options." >"$root/etc/fstab"
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" \
    "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log "$root"/var/log/apt/*
