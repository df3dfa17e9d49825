"""What a cluster is made of on a server: each kind with create, destroy and observe.

They are made in the order rules, links, networks, volumes, domains and removed in reverse. `create` makes what is
missing and leaves what is right; `destroy` and `observe` find things by their marks. `reduce`, of the kinds of which
each node has its own, removes what one plan has there and the next has not.
"""

from vcluster.resources import domains, interfaces, networks, rules, volumes

# In the order of removal; creation goes the other way.
KINDS = {"domains": domains, "volumes": volumes, "networks": networks, "links": interfaces, "rules": rules}
PARTS = {"domains": domains, "volumes": volumes, "links": interfaces, "rules": rules}
