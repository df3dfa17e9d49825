"""What a node does with its tap, without the node; and what passes a tap."""

from __future__ import annotations

# It has the tap open, as QEMU has. Each line on standard input is a frame that the node sends; each one is answered.
SEND_BY_TAP = """
import fcntl, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH", sys.argv[1].encode(), 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
print(flush=True)
for line in sys.stdin:
    os.write(tap, bytes.fromhex(line))
    print(flush=True)
"""

# The size of the largest frame of an interface, until a line on standard input.
LARGEST = """
import socket, sys
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
frames.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
frames.bind((sys.argv[1], 0))
print("ready", flush=True)
sys.stdin.readline()
frames.setblocking(False)
largest = 0
try:
    while True:
        largest = max(largest, len(frames.recv(1 << 17)))
except BlockingIOError:
    print(largest, flush=True)
"""

# Reads what TRANSMIT of a test sends to node2 by TCP.
RECEIVE = """
import socket
server = socket.create_server(("10.0.0.2", 7000))
print("ready", flush=True)
found = server.accept()[0]
while found.recv(1 << 20):
    pass
"""
