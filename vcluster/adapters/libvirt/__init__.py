"""libvirt, on this machine and through the connection to a server."""
