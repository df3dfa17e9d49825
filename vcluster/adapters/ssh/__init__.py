"""SSH by paramiko, with the settings and known host keys of OpenSSH."""
