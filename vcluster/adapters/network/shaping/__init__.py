"""The limits of links at the switch: queues with a rate (tc), and rules that drop and redirect frames (nf_tables)."""
