"""Formats of captured frames: the kernel's ring, pcapng files, and filters. Pure."""
