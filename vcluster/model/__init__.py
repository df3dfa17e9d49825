"""Frozen data: what is asked for, what servers are like, what will be, and the names of it all."""
