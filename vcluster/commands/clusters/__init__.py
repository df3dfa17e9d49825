"""Commands that make, change or remove a cluster."""
