"""Results, progress and errors as text for people."""
