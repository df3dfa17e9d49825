"""The resources of a cluster on a server. Each kind has the operations create, destroy and observe.

Create makes rules, interfaces, networks, volumes, profiles and domains, in this order; removal is in reverse.
`create` makes missing resources and leaves correct ones. `destroy` and `observe` find resources by their owner labels.
Kinds with resources for each node also have `reduce`: it removes the resources of one plan that the next plan lacks.
The limits and the faults of links have owner labels as interfaces and tables, so these two kinds remove and observe
them.
Teardown and the search for leftovers use KINDS. The commands `switch up`, `switch down`, `doctor` and `repair` do not:
they name the kinds that they make and remove.
"""

from __future__ import annotations

from vcluster.resources import domains, faults, interfaces, networks, profiles, rules, segmentation, shaping, volumes

# In the order of removal
KINDS = {
    "faults": faults,
    "domains": domains,
    "profiles": profiles,
    "volumes": volumes,
    "networks": networks,
    "segmentation": segmentation,
    "interfaces": interfaces,
    "rules": rules,
}
NODE_KINDS = {
    "faults": faults,
    "domains": domains,
    "profiles": profiles,
    "volumes": volumes,
    "shaping": shaping,
    "segmentation": segmentation,
    "interfaces": interfaces,
    "rules": rules,
}
