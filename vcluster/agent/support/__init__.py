"""What a server adds to a bug report."""
