"""What the kernel has of a cluster, for a comparison with its plan. Nothing here changes anything."""
