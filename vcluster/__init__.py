"""Virtual MPI clusters on libvirt and QEMU, whose traffic crosses one software switch."""

__version__ = "0.1.0"
