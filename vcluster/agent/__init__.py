"""The agent: a process on each server, started over SSH, that does the work that needs root there.

It answers requests one at a time and ends with the connection. On the server run `bootstrap`, `request_loop` and the
operations. On the controller, `client` and `remote_agent` send requests, and `bundle` packs the modules for the server.
"""
