"""What vcluster creates, finds and removes on servers: a module for each kind. kinds.py lists them."""
