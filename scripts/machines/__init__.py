"""Code of scripts/machine: whole emulated machines, their disks, and the cache of both. Standard library only."""
