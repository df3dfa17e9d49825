"""The agent: a process of ours on each server, started over SSH, that does there what only root of that server can.

It answers requests one at a time and ends with the connection. `serve` and `operations` run on the server, `door` is
the controller's side, `zipapp` and `loader` bring the one to the other.
"""
