#!/bin/sh
# What only this recipe needs. ../debian/customize.sh calls it with the root directory as its argument.
set -eu
root=$1

# The modules of this kernel are compressed. To decompress those of NFS takes several seconds under emulation.
chroot "$root" find /usr/lib/modules -name '*.ko.xz' -exec xz --decompress {} +
chroot "$root" depmod "$(basename "$root"/usr/lib/modules/*)"

# The package of this ping sets no capability: it expects settings of a package that it only recommends.
chmod u+s "$root/usr/bin/ping"
