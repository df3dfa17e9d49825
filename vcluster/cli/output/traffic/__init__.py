"""Results about the traffic of a cluster."""
