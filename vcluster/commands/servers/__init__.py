"""Commands that work on servers."""
