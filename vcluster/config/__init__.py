"""Options and the configuration file: from their text to a request."""
