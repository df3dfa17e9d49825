"""What a captured file shows about the traffic between nodes and ranks. Pure."""
