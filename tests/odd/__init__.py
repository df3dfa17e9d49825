"""Odd input: property tests of every place where vcluster reads what a user, a file, a server or a node wrote."""
