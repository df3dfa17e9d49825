"""The counters of traffic, as the agent reads them."""
