"""Captures of frames on a server."""
