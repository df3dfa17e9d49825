"""Faults of a cluster on a server."""
