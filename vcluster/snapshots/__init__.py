"""Formats and keys of snapshots. Pure."""
