"""Measures TCP between two hosts of Mininet at one TCLink: mininet_link.py MBIT_S CLIENT…

It makes only the link, and never a whole network: that would change settings of the machine's kernel. Debian's Python
runs it, because Mininet is a package of Debian.
"""

import sys

from mininet.link import TCLink
from mininet.node import Node

one, two = Node("one"), Node("two")
TCLink(one, two, bw=float(sys.argv[1]))
one.setIP("10.9.0.1/24")
two.setIP("10.9.0.2/24")

server = two.popen(["nice", "-n", "-20", "iperf3", "--server", "--one-off", "--forceflush"], text=True)
while "listening" not in (line := server.stdout.readline()):
    if not line:
        sys.exit("iperf3 ended")
client = one.popen(sys.argv[2:], text=True)
print(client.communicate(timeout=60)[0])
for node in (one, two):
    node.terminate()
sys.exit(client.returncode)
