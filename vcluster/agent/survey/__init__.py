"""What this server has of a cluster, read in one request. Nothing here changes anything."""
