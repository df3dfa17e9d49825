"""Frozen data: requests, facts of servers, plans, status, keys and names."""
