"""Pure decisions: from a request and facts to a plan."""
