"""The command line: options in, one call, errors out. A command imports slow modules only when it runs."""
