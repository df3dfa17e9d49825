"""Servers, the connections to them, facts about them, and the ledger."""
