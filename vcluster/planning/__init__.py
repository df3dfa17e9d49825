"""Pure functions that turn a request and facts into a plan."""
