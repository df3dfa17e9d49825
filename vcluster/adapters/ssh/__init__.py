"""SSH by paramiko, with the settings and host keys that OpenSSH has on file."""
