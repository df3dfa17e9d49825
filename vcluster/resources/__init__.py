"""What a cluster is made of on a server: each kind with create, destroy and observe.

They are made in the order links, networks, volumes, domains and removed in reverse. `destroy` and `observe` find
things by their marks.
"""
