"""Faults of links that the switch makes: it drops frames by rules of nf_tables."""
