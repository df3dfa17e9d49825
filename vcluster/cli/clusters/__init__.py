"""Commands that create, change, list and delete clusters."""
