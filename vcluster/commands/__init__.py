"""What each command does to a cluster."""
