"""A table that is redrawn on a terminal."""
