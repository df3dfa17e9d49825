"""The graph of a cluster, and the traffic of its links."""
