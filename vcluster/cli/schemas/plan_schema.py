"""The schema of a plan: the result of create --plan."""

from __future__ import annotations

from vcluster.cli.schemas.schema_parts import (
    Schema,
    address,
    by_name,
    flag,
    integer,
    mac,
    many,
    one_of,
    optional,
    record,
    seconds,
    subnet,
    text,
)

MODE = one_of("How the cluster was requested", "local", "remote", "shared")
ROLE = one_of("The head node starts MPI programs; a storage node is a worker with data_gib", "head", "worker")
DATA_GIB = integer("Size of the disk that a storage node shares, in GiB; 0 for other nodes")
CPU_LIMIT = integer("Share of a processor of the server that each CPU of a node may use, in percent; 0 without a limit")
PROCESSORS = many(
    "Processors of its server that the CPUs of the node are pinned to, in order; empty if the server's kernel chooses",
    integer("Number of a processor"),
)
MTU = integer("MTU of the cluster network, in bytes")
SUBNET = subnet("The cluster network")
SWITCH = record(
    "The bridge that all cluster traffic crosses",
    {"server": text("Its server"), "bridge": text("Name of the bridge")},
)
VNI = integer("VXLAN network identifier (VNI) of the tunnel")

LOGIN = record(
    "How vcluster logs in to the server; null for this machine",
    {
        "host": text("Host name, address, or Host of ~/.ssh/config"),
        "user": text("Login user; empty if ~/.ssh/config decides"),
        "port": integer("Port of sshd; 0 if ~/.ssh/config decides"),
        "key": optional(text("Path of the private key; null for the keys that ssh uses")),
        "password": text("Source of the password, never the password itself; empty without a password"),
        "fingerprint": text("Fingerprint of the host key; empty if it was not given"),
    },
)
IMAGE = record(
    "The image of the nodes",
    {
        "name": text("Name of the image"),
        "digest": text("Digest of the image, sha256-…"),
        "disk": text("Path of the disk image"),
        "virtual_size_bytes": integer("Size of the disk as a node sees it, in bytes"),
        "kernel": optional(text("Path of the kernel; null if the image boots from its disk")),
        "initrd": optional(text("Path of the initial RAM disk; null if the image boots from its disk")),
        "kernel_cmdline": text("Command line of the kernel"),
        "features": many("Abilities of the image", text("Name of an ability")),
    },
)
BRIDGE = record(
    "A bridge",
    {"name": text("Name of the bridge"), "mtu": MTU, "alias": text("Owner label")},
)
TUNNEL = record(
    "One end of a VXLAN tunnel",
    {
        "name": text("Name of the interface"),
        "bridge": text("The bridge that the tunnel is a port of"),
        "vni": VNI,
        "local": address("Address of this end"),
        "remote": address("Address of the other end"),
        "interface": text("The server's interface that carries the tunnel"),
        "port": integer("UDP port"),
        "mtu": MTU,
        "alias": text("Owner label"),
    },
)
NETWORK = record(
    "The management network of the server; null for a server without nodes",
    {
        "name": text("Name of the network in libvirt"),
        "uuid": text("UUID of the network"),
        "bridge": text("Its bridge"),
        "subnet": subnet("The management network"),
    },
)
POOL = record(
    "The storage pool of the disks; null for a server without nodes",
    {"name": text("Name of the pool in libvirt"), "uuid": text("UUID of the pool"), "path": text("Its folder")},
)
SERVER = record(
    "The part of the plan on one server",
    {
        "name": text("Name of the server"),
        "login": optional(LOGIN),
        "host_key": text("The only host key that the server may present; empty for this machine"),
        "timeout_s": seconds("Time limit of a login"),
        "storage": text("Folder for disks and images"),
        "bridges": many("The bridges", BRIDGE),
        "tunnels": many("The tunnels", TUNNEL),
        "accel": one_of("How nodes run: hardware virtualization or emulation", "kvm", "tcg"),
        "network": optional(NETWORK),
        "pool": optional(POOL),
        "image": optional(IMAGE),
        "tsc_mhz": integer("Frequency of the time stamp counter that nodes get, in MHz; 0 if their kernels measure it"),
        "processors": many(
            "Processors that nodes are pinned to, in turn; empty if the server's kernel chooses",
            integer("Number of a processor"),
        ),
    },
)
MANAGEMENT = record(
    "The management interface; null for a node without one",
    {
        "address": address("Address on the management network"),
        "mac": mac("MAC address"),
        "port": text("The tap of this interface, on the node's server"),
    },
)
NODE = record(
    "A node",
    {
        "name": text("Name of the node"),
        "index": integer("Number of the node, from 1", minimum=1),
        "role": ROLE,
        "server": text("The server that carries the node"),
        "domain": text("Name of the domain in libvirt"),
        "uuid": text("UUID of the domain"),
        "address": address("Address on the cluster network"),
        "mac": mac("MAC address on the cluster network"),
        "bridge": text("The bridge that the node is connected to"),
        "port": text("The port of the bridge for this node"),
        "management": optional(MANAGEMENT),
        "vni": optional(integer("VNI of the node's tunnel; null for a node without a tunnel")),
        "data_gib": DATA_GIB,
        "processors": PROCESSORS,
    },
)
DHCP_RANGE = record(
    "DHCP addresses for unknown hosts; null for static addresses",
    {"first": address("The first address"), "last": address("The last address")},
)
MPI_PORTS = record(
    "TCP ports for MPI; null for any port", {"first": integer("The first port"), "last": integer("The last port")}
)
IMAGE_LOGIN = record(
    "The first login to a node of a foreign image; null for other images",
    {"user": text("Login user"), "password": text("Source of the password, never the password itself")},
)
CAPACITY = record(
    "The capacity of a server",
    {
        "cpus": integer("Number of CPUs"),
        "memory_free_mib": integer("Free memory, in MiB"),
        "disk_free_mib": integer("Free disk space, in MiB"),
    },
)

LINK = record(
    "A direction of a link",
    {
        "node": text("Name of the node"),
        "direction": one_of("Frames from the node, or to it", "from", "to"),
        "shape": record(
            "The limits",
            {
                "rate_bits": integer("Rate in bits a second; 0 if unlimited"),
                "queue_bytes": integer("Room for frames that wait, in bytes; 0 if it is computed"),
                "loss_ppm": integer("Frames of a million that are dropped at random"),
                "ecn_bytes": integer("Frames that find so much waiting are marked (ECN), in bytes; 0 if none is"),
                "delay_us": integer("Delay, in microseconds"),
                "jitter_us": integer("Variation of the delay, in microseconds"),
                "duplicate_ppm": integer("Frames of a million that arrive twice"),
                "reorder_ppm": integer("Frames of a million that pass the delayed ones"),
                "corrupt_ppm": integer("Frames of a million in which a bit is changed"),
                "burst_loss_ppm": integer("Frames of a million that are lost in bursts"),
                "burst_frames": integer("Mean number of frames in a burst; 0 without bursts"),
            },
        ),
        "peer": text("The other node of these frames; empty if the limits are for all frames"),
    },
)

PLAN: Schema = record(
    "The plan of the cluster; nothing was created",
    {
        "name": text("Name of the cluster"),
        "owner": text("The owner id in owner labels"),
        "mode": MODE,
        "subnet": SUBNET,
        "mtu": MTU,
        "vcpus": integer("CPUs of each node"),
        "memory_mib": integer("Memory of each node, in MiB"),
        "disk_gib": integer("Largest size of each node's disk, in GiB"),
        "user": text("The user who runs MPI programs"),
        "image": IMAGE,
        "switch": SWITCH,
        "servers": many("The servers", SERVER),
        "nodes": many("The nodes; the first is the head node", NODE),
        "timeout_s": seconds("Time limit of the command"),
        "layout": one_of("private: only the head node has a management interface", "direct", "private"),
        "dhcp_range": optional(DHCP_RANGE),
        "stores": many("The storage nodes", text("Name of a node")),
        "sudo_commands": many("Programs that the user can run as root", text("Path of a program")),
        "mpi_ports": optional(MPI_PORTS),
        "image_login": optional(IMAGE_LOGIN),
        "is_gateway_open": flag("Whether the head node of a private cluster is the gateway to the internet"),
        "vxlan_port": integer("UDP port of the tunnels"),
        "links": many("The directions of links that have limits", LINK),
        "delays_in_guest": flag("Whether nodes delay frames, because the kernel of the switch cannot"),
        "cpu_limit_percent": CPU_LIMIT,
        "facts": by_name("The capacity of each server, by its name", CAPACITY),
    },
)
