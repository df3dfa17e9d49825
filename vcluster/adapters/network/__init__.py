"""The kernel's network: interfaces, packet filters and raw frames, by netlink and sockets."""
