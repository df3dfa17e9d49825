"""Measuring programs on nodes."""
