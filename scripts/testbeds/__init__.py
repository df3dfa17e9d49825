"""Code of scripts/testbed and scripts/fresh: namespaces, and servers and trees made of them. Standard library only."""
