"""The limits of links on the server of the switch."""
