"""The libvirt of one server: domains, networks, storage pools, volumes and channels of nodes.

Owner labels identify what belongs to a cluster. Domains carry an `owner` element in their metadata. Networks and pools
have a UUID derived from their name and owner. Nothing else is ever changed. It is a success to remove what does not
exist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from xml.etree import ElementTree as ET

import libvirt

from vcluster.adapters.libvirt import domain_state, qemu_monitor
from vcluster.adapters.libvirt.domain_run import DomainRun
from vcluster.adapters.libvirt.libvirt_connection import LibvirtConnection, within
from vcluster.adapters.libvirt.owned_resources import OwnedResource, network_labels, owned_resources
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.errors import VclusterError
from vcluster.model.status import PowerState
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

SYSTEM_URI = "qemu:///system"
QEMU_ANSWER_S = 10.0  # a busy QEMU answers in a second
_LISTS = {"domain": "listAllDomains", "network": "listAllNetworks", "pool": "listAllStoragePools"}
NAMED_KINDS = tuple(_LISTS)


class Hypervisor(LibvirtConnection):
    """The libvirt of one server. `owner` is the owner id; `name` names the server in messages."""

    def __init__(self, uri: str, owner: str, *, name: str = "") -> None:
        super().__init__(uri, name)
        self.owner = owner
        self._defining, self._has_defined = threading.Lock(), False

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def memory_free_mib(self) -> int:
        """Memory that guests can use now, including the page cache, in MiB."""
        with self._errors("reading the server's memory"):
            stats = self._connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return int(sum(stats.get(part, 0) for part in ("free", "buffers", "cached"))) // 1024

    def versions(self) -> dict[str, str]:
        """The versions of libvirt and QEMU."""
        with self._errors("reading the versions"):
            found = {"libvirt": self._connection.getLibVersion(), "qemu": self._connection.getVersion()}
        return {name: f"{n // 1_000_000}.{n // 1000 % 1000}.{n % 1000}" for name, n in found.items()}

    def names(self, kind: str) -> frozenset[str]:
        """Every name in use, of any owner, of one of NAMED_KINDS."""
        with self._errors("listing names"):
            return frozenset(resource.name() for resource in getattr(self._connection, _LISTS[kind])())

    # Domains

    def domains(self) -> tuple[domain_state.OwnedDomain, ...]:
        """All our domains."""
        with self._errors("listing domains"):
            return domain_state.owned_domains(self._connection, self.owner)

    def image_users(self, digest: str) -> frozenset[str]:
        """The clusters of any owner that use an image."""
        with self._errors("listing domains"):
            return domain_state.image_users(self._connection, digest)

    def owners_of(self, cluster: str) -> frozenset[str]:
        """The owner ids of domains that have the names of a cluster's nodes."""
        with self._errors("listing domains"):
            return domain_state.owners_of(self._connection, cluster)

    def labels_without_domains(self, former_owner: str) -> frozenset[tuple[str, str]]:
        """The cluster and the owner id of networks of any owner, and of networks and pools of a former owner.

        Pools have no label. Networks of the former owner have none either.
        """
        with self._errors("listing networks and pools"):
            networks, pools = self._connection.listAllNetworks(), self._connection.listAllStoragePools()
            former = (
                *owned_resources("network", networks, former_owner),
                *owned_resources("pool", pools, former_owner),
            )
            return network_labels(networks) | {(each.cluster, former_owner) for each in former}

    def define_domain(self, xml: str) -> None:
        """Define a domain. libvirt validates its XML against the schema; otherwise it would ignore unknown elements.

        The first one alone: libvirtd's first two validations fail when they run at once, because libxml2 sets up its
        schema types without a lock.
        """
        with self._errors("defining a domain"):
            with self._defining:
                if not self._has_defined:
                    self._connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
                    self._has_defined = True
                    return
            self._connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def undefine_domain(self, name: str) -> None:
        """Remove the definition of a stopped domain."""
        with self._unless_missing(f"undefining {name}"):
            flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            self._connection.lookupByName(name).undefineFlags(flags)

    def start_domain(self, name: str) -> None:
        """Power a domain on, unless it is running."""
        with self._errors(f"starting {name}"):
            domain = self._connection.lookupByName(name)
            if not domain.isActive():
                domain.create()

    def resume_domain(self, name: str) -> None:
        """Let a paused domain run again. A clone that has not received its state starts from its definition."""
        with self._errors(f"resuming {name}"):
            domain = self._connection.lookupByName(name)
            if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()
            elif qemu_monitor.waits_for_state(domain):
                domain.destroy()
                domain.create()
            else:
                domain.resume()

    def power_state(self, name: str) -> PowerState:
        """The power of a domain."""
        with self._errors(f"inspecting {name}"):
            return domain_state.power_state(self._connection.lookupByName(name))

    def start_transient_domain(self, xml: str) -> None:
        """Start a domain that libvirt stops and removes when this connection ends, for any reason."""
        with self._errors("starting a domain"):
            self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def xml_of(self, name: str) -> str:
        """The XML of a running domain, with what libvirt added to it and without the names of its run."""
        with self._errors(f"reading {name}"):
            return str(self._connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE))

    def taps_of(self, name: str) -> tuple[str, ...]:
        """The server's interfaces of a running domain. libvirt names those that have no name."""
        with self._errors(f"reading {name}"):
            return domain_state.taps(self._connection.lookupByName(name).XMLDesc())

    def qemu_user(self) -> tuple[int, int]:
        """The user and the group that QEMU runs as, as numbers."""
        with self._errors("reading QEMU's user"):
            return domain_state.qemu_user(self._connection.getCapabilities())

    def save_devices(self, name: str, lend: qemu_monitor.Lend, deadline: Deadline) -> None:
        """Pause a domain and write the state of its devices. `lend` gives QEMU the file."""
        with self._errors(f"saving {name}"):
            domain = self._connection.lookupByName(name)
            domain.suspend()
            qemu_monitor.transfer(domain, "migrate", lend, deadline)

    def start_from_state(self, name: str, xml: str, lend: qemu_monitor.Lend, deadline: Deadline) -> None:
        """Start a defined domain once with another XML, load the state of its devices, and let it run.

        `lend` gives QEMU the file of the state. The definition does not change.
        """
        with self._errors(f"starting {name}"):
            domain = self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
            qemu_monitor.transfer(domain, "migrate-incoming", lend, deadline)
            domain.resume()

    def attach_device(self, name: str, xml: str) -> None:
        """Plug a device into a running domain; it is unplugged when the domain stops."""
        with self._errors(f"plugging a device into {name}"):
            self._connection.lookupByName(name).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def shut_down_domain(self, name: str) -> bool:
        """Press a domain's power button (ACPI). The guest decides when it powers off.

        Returns whether QEMU answered in time. libvirt waits for it without a limit.
        """
        with self._unless_missing(f"shutting down {name}"):
            domain = self._connection.lookupByName(name)
            try:
                within(lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN), QEMU_ANSWER_S)
            except TimeoutError:
                return False
        return True

    def is_active(self, name: str) -> bool:
        """Whether a domain is running."""
        with self._errors(f"reading the state of {name}"):
            return bool(self._connection.lookupByName(name).isActive())

    def stop_domain(self, name: str) -> None:
        """Cut a domain's power."""
        with self._unless_missing(f"stopping {name}"):
            self._connection.lookupByName(name).destroy()

    def is_channel_open(self, name: str, channel: str) -> bool:
        """Whether a program in a running domain has opened a channel (https://libvirt.org/formatdomain.html)."""
        with self._errors(f"reading the channels of {name}"):
            root = ET.fromstring(self._connection.lookupByName(name).XMLDesc())  # noqa: S314 - libvirt wrote it
        return any(
            target.get("name") == channel and target.get("state") == "connected"
            for target in root.iterfind("devices/channel/target")
        )

    def run_of(self, domain: str, node: str) -> DomainRun:
        """The present run of a node's domain, for waits that end with it."""
        events = self.events
        with self._errors(f"inspecting {domain}"):
            return DomainRun(self._connection.lookupByName(domain), node, events, self._error_of)

    def open_channel(self, domain: str, channel: str, node: str) -> SerialChannel:
        """Open a channel of a running node. Raises VclusterError, also when the node has stopped."""
        run = self.run_of(domain, node)
        try:
            with self._errors(f"opening a channel of {domain}"):
                stream = self._connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
                self._connection.lookupByName(domain).openChannel(channel, stream, 0)
        except VclusterError:
            run.check(f"channel {channel}")  # a node that has stopped is the cause
            raise
        return SerialChannel(run, stream)

    # Networks

    def networks(self) -> tuple[OwnedResource, ...]:
        """All networks with our owner label."""
        with self._errors("listing networks"):
            return owned_resources("network", self._connection.listAllNetworks(), self.owner)

    def create_network(self, xml: str) -> None:
        """Define a network and start it, unless it is running. It does not start when the server boots."""
        with self._errors("creating the management network"):
            network = self._connection.networkDefineXML(xml)
            if not network.isActive():
                network.create()

    def stop_network(self, name: str) -> None:
        """Stop a network."""
        with self._unless_missing(f"stopping network {name}"):
            self._connection.networkLookupByName(name).destroy()

    def undefine_network(self, name: str) -> None:
        """Remove the definition of a stopped network."""
        with self._unless_missing(f"undefining network {name}"):
            self._connection.networkLookupByName(name).undefine()

    # Pools and volumes

    def pools(self) -> tuple[OwnedResource, ...]:
        """All pools with our owner label."""
        with self._errors("listing pools"):
            return owned_resources("pool", self._connection.listAllStoragePools(), self.owner)

    def create_pool(self, xml: str) -> None:
        """Define a pool, create its folder and start it, unless it is running."""
        with self._errors("creating the storage pool"):
            pool = self._connection.storagePoolDefineXML(xml)
            if not pool.isActive():
                pool.build()
                pool.create()

    def destroy_pool(self, name: str) -> None:
        """Remove a pool with all its volumes and its folder."""
        with self._unless_missing(f"removing pool {name}"):
            pool = self._connection.storagePoolLookupByName(name)
            self._empty(pool)
        with self._unless_missing(f"stopping pool {name}"):
            pool.destroy()
        with self._unless_missing(f"removing the folder of pool {name}"):
            _delete_folder(pool)
        with self._unless_missing(f"undefining pool {name}"):
            pool.undefine()

    def pool_folder(self, name: str) -> str:
        """The folder of a pool, active or not."""
        with self._errors(f"reading pool {name}"):
            root = ET.fromstring(self._connection.storagePoolLookupByName(name).XMLDesc())  # noqa: S314 - libvirt wrote it
        return root.findtext("target/path") or ""

    def delete_volumes(self, pool: str, is_selected: Callable[[str], bool]) -> None:
        """Delete the volumes of a pool whose names `is_selected` accepts."""
        with self._unless_missing(f"removing volumes of {pool}"):
            self._empty(self._connection.storagePoolLookupByName(pool), is_selected)

    def _empty(self, pool: libvirt.virStoragePool, is_selected: Callable[[str], bool] = lambda _: True) -> None:
        """Delete the selected volumes, including those of interrupted uploads."""
        if not pool.isActive():
            # A pool whose folder was never created cannot start. It has no volumes.
            pool.build()
            pool.create()
        pool.refresh()
        selected = [volume for volume in pool.listAllVolumes() if is_selected(volume.name())]
        outcomes = parallel.outcomes(selected, self._delete_volume)
        parallel.raise_all([outcome for outcome in outcomes if outcome])

    def _delete_volume(self, volume: libvirt.virStorageVol) -> None:
        with self._unless_missing(f"deleting volume {volume.name()}"):
            volume.delete()

    def create_volume(self, pool: str, xml: str, content: bytes = b"") -> None:
        """Create a volume and upload its content."""
        with self._errors(f"creating a volume in {pool}"):
            volume = self._connection.storagePoolLookupByName(pool).createXML(xml)
            if content:
                self._upload(volume, content)

    def volumes(self, pool: str) -> tuple[str, ...]:
        """The names of a pool's volumes."""
        with self._errors(f"listing the volumes of {pool}"):
            return tuple(self._connection.storagePoolLookupByName(pool).listVolumes())

    def _upload(self, volume: libvirt.virStorageVol, content: bytes) -> None:
        stream = self._connection.newStream()
        volume.upload(stream, 0, len(content))
        view = memoryview(content)
        while view:
            view = view[stream.send(bytes(view[:262144])) :]
        stream.finish()


def _delete_folder(pool: libvirt.virStoragePool) -> None:
    try:
        pool.delete()
    except libvirt.libvirtError as error:
        if "No such file" not in str(error):
            raise
