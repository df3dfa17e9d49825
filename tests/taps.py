"""What a node does with its tap, without the node."""

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
