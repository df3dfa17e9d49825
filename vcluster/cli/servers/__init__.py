"""Commands that work on servers and images."""
