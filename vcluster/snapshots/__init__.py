"""Formats and names of snapshots. Pure."""
