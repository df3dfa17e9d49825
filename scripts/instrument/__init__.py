"""How accurate the switch is as an instrument: the subject `instrument` of scripts/bench.

Nodes are network namespaces in servers of the testbed, at the ports of a real switch. Each figure is measured with
vcluster, and with the programs that a user would take otherwise.
"""
