#!/bin/sh
# What only this recipe needs. ../debian/customize.sh calls it with the root directory as its argument.
set -eu
root=$1
guest=$(dirname "$(readlink -f "$0")")/../guest

install -m 644 "$guest/mpi-end.c" "$root/usr/lib/vcluster/"
chroot "$root" gcc -O2 -Wall -shared -fPIC -o /usr/lib/vcluster/mpi-end.so /usr/lib/vcluster/mpi-end.c
