"""Commands that work on nodes of a cluster that exists."""
