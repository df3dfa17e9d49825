"""The command line: options in, one call, errors out. Each command imports what is slow by itself."""
