"""libvirt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from vcluster.adapters.libvirt.libvirt_errors import errors
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.errors import VclusterError
from vcluster.model import naming
from vcluster.render.domain_xml import OWNER_NAMESPACE

SYSTEM_URI = "qemu:///system"

_GONE = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_OPERATION_INVALID,  # "… is not running", "… is not active"
}


@dataclass(frozen=True, slots=True)
class OwnedDomain:
    """A domain of ours."""

    name: str
    cluster: str
    node: str
    image: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class OwnedResource:
    """A network or a pool of ours."""

    name: str
    cluster: str
    is_active: bool


class Hypervisor:
    """A connection to the libvirt of one server. `owner` tells what is ours; `name` is for messages."""

    def __init__(self, uri: str, owner: str, *, name: str = "") -> None:
        self.uri = uri
        self.owner = owner
        self.name = name
        self._defining = threading.Lock()
        _start_event_loop()
        with errors(f"connecting to {f'the libvirt of {name}' if name else uri}"):
            self._connection = libvirt.open(uri)
            # A server that dies is noticed by its silence.
            if not uri.startswith("test:"):
                self._connection.setKeepAlive(5, 6)

    def close(self) -> None:
        """Hang up."""
        with errors(f"leaving {self.uri}"):
            self._connection.close()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        where = f"{self.name}: " if self.name else ""
        try:
            with errors(where + doing):
                yield
        except VclusterError as error:
            if self.is_alive:
                raise
            raise VclusterError(f"{where}the connection to libvirt broke while {doing}") from error

    @property
    def is_alive(self) -> bool:
        """Whether the connection stands."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    @contextmanager
    def _missing_is_fine(self, doing: str) -> Iterator[None]:
        with self._errors(doing):
            try:
                yield
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _GONE:
                    raise

    def memory_free_mib(self) -> int:
        """Memory that guests can have now, page cache included, in MiB."""
        with self._errors("reading the server's memory"):
            stats = self._connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return int(sum(stats.get(part, 0) for part in ("free", "buffers", "cached"))) // 1024

    def versions(self) -> dict[str, str]:
        """libvirt's and QEMU's versions."""
        with self._errors("asking for versions"):
            found = {"libvirt": self._connection.getLibVersion(), "qemu": self._connection.getVersion()}
        return {name: f"{n // 1_000_000}.{n // 1000 % 1000}.{n % 1000}" for name, n in found.items()}

    def names(self) -> dict[str, frozenset[str]]:
        """Every name in use, whoever uses it, by kind: domain, network, pool."""
        with self._errors("listing names"):
            found = {
                "domain": self._connection.listAllDomains(),
                "network": self._connection.listAllNetworks(),
                "pool": self._connection.listAllStoragePools(),
            }
            return {kind: frozenset(thing.name() for thing in things) for kind, things in found.items()}

    # Domains

    def domains(self) -> tuple[OwnedDomain, ...]:
        """All domains of ours."""
        with self._errors("listing domains"):
            found = [_owned(domain, self.owner) for domain in self._connection.listAllDomains()]
        return tuple(domain for domain in found if domain)

    def define_domain(self, xml: str) -> None:
        """Define a domain; its XML is held against libvirt's schema, which otherwise ignores what it does not know.

        One at a time: libvirtd's first two validations spoil each other when they come together (libxml2 sets up its
        schema types without a lock).
        """
        with self._defining, self._errors("defining a domain"):
            self._connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def undefine_domain(self, name: str) -> None:
        """Remove the definition of a stopped domain."""
        with self._missing_is_fine(f"undefining {name}"):
            flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            self._connection.lookupByName(name).undefineFlags(flags)

    def start_domain(self, name: str) -> None:
        """Power a domain on, unless it runs."""
        with self._errors(f"starting {name}"):
            domain = self._connection.lookupByName(name)
            if not domain.isActive():
                domain.create()

    def start_transient_domain(self, xml: str) -> None:
        """Start a domain that libvirt ends when this connection does, whatever ends it, and forgets."""
        with self._errors("starting a domain"):
            self._connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def save_domain(self, name: str, path: str) -> None:
        """Write a running domain's memory to a file of its server; it does not run any more then."""
        with self._errors(f"saving {name}"):
            self._connection.lookupByName(name).save(path)

    def restore_domain(self, path: str) -> None:
        """Have the domain run that a file of its server was written from."""
        with self._errors("restoring a domain"):
            self._connection.restore(path)

    def attach_device(self, name: str, xml: str) -> None:
        """Give a running domain one more device, until its power is cut."""
        with self._errors(f"plugging a device into {name}"):
            self._connection.lookupByName(name).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def shut_down_domain(self, name: str) -> None:
        """Press a domain's power button; when it heeds that is up to it."""
        with self._missing_is_fine(f"shutting down {name}"):
            self._connection.lookupByName(name).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def is_active(self, name: str) -> bool:
        """Whether a domain runs."""
        with self._errors(f"looking at {name}"):
            return bool(self._connection.lookupByName(name).isActive())

    def stop_domain(self, name: str) -> None:
        """Cut a domain's power."""
        with self._missing_is_fine(f"stopping {name}"):
            self._connection.lookupByName(name).destroy()

    def is_channel_open(self, name: str, channel: str) -> bool:
        """Whether somebody in a running domain has opened one of its channels (https://libvirt.org/formatdomain.html)."""
        with self._errors(f"looking at {name}"):
            root = ET.fromstring(self._connection.lookupByName(name).XMLDesc())  # noqa: S314 - libvirt has written it
        return any(
            target.get("name") == channel and target.get("state") == "connected"
            for target in root.iterfind("devices/channel/target")
        )

    def words(self, domain: str, channel: str) -> SerialChannel:
        """What a running node says on one of its channels, from now on."""
        with self._errors(f"listening to {domain}"):
            stream = self._connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            self._connection.lookupByName(domain).openChannel(channel, stream, 0)
        return SerialChannel(domain, stream)

    # Networks

    def networks(self) -> tuple[OwnedResource, ...]:
        """All networks of ours."""
        with self._errors("listing networks"):
            return _ours("network", self._connection.listAllNetworks(), self.owner)

    def create_network(self, xml: str) -> None:
        """Define a network and start it, unless it runs; it does not start with the host by itself."""
        with self._errors("making the management network"):
            network = self._connection.networkDefineXML(xml)
            if not network.isActive():
                network.create()

    def destroy_network(self, name: str) -> None:
        """Stop a network and remove its definition."""
        with self._missing_is_fine(f"stopping network {name}"):
            self._connection.networkLookupByName(name).destroy()
        with self._missing_is_fine(f"undefining network {name}"):
            self._connection.networkLookupByName(name).undefine()

    # Pools and volumes

    def pools(self) -> tuple[OwnedResource, ...]:
        """All pools of ours."""
        with self._errors("listing pools"):
            return _ours("pool", self._connection.listAllStoragePools(), self.owner)

    def create_pool(self, xml: str) -> None:
        """Define a pool, make its folder and start it, unless it runs."""
        with self._errors("making the storage pool"):
            pool = self._connection.storagePoolDefineXML(xml)
            if not pool.isActive():
                pool.build()
                pool.create()

    def destroy_pool(self, name: str) -> None:
        """Remove a pool with every volume and the folder."""
        with self._missing_is_fine(f"removing pool {name}"):
            pool = self._connection.storagePoolLookupByName(name)
            self._empty(pool)
        with self._missing_is_fine(f"stopping pool {name}"):
            pool.destroy()
        with self._missing_is_fine(f"removing the folder of pool {name}"):
            _delete_folder(pool)
        with self._missing_is_fine(f"undefining pool {name}"):
            pool.undefine()

    def delete_volumes(self, pool: str, is_meant: Callable[[str], bool]) -> None:
        """Delete volumes of a pool, by their names."""
        with self._missing_is_fine(f"removing volumes of {pool}"):
            self._empty(self._connection.storagePoolLookupByName(pool), is_meant)

    def _empty(self, pool: libvirt.virStoragePool, is_meant: Callable[[str], bool] = lambda _: True) -> None:
        """Delete all volumes that are meant, also those of an upload that was cut off."""
        if not pool.isActive():
            # A pool whose folder was never made cannot be started; then it has no volumes either.
            pool.build()
            pool.create()
        pool.refresh()
        for volume in filter(lambda volume: is_meant(volume.name()), pool.listAllVolumes()):
            with self._missing_is_fine(f"deleting volume {volume.name()}"):
                volume.delete()

    def create_volume(self, pool: str, xml: str, content: bytes = b"") -> None:
        """Make a volume and put content into it."""
        with self._errors(f"making a volume in {pool}"):
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


def _owned(domain: libvirt.virDomain, by: str) -> OwnedDomain | None:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OWNER_NAMESPACE)
        owner, is_active = ET.fromstring(text), bool(domain.isActive())  # noqa: S314 - libvirt has parsed it before
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    get = owner.attrib.get
    if get("by") != by:
        return None
    return OwnedDomain(domain.name(), get("cluster", ""), get("node", ""), get("image", ""), is_active)


def _ours(kind: str, things: list[Any], owner: str) -> tuple[OwnedResource, ...]:
    prefix = naming.libvirt_name("")
    named = [(thing, thing.name().removeprefix(prefix)) for thing in things if thing.name().startswith(prefix)]
    return tuple(
        OwnedResource(thing.name(), cluster, bool(thing.isActive()))
        for thing, cluster in named
        if thing.UUIDString() == naming.uuid_for(kind, cluster, owner)
    )


def _delete_folder(pool: libvirt.virStoragePool) -> None:
    try:
        pool.delete()
    except libvirt.libvirtError as error:
        if "No such file" not in str(error):
            raise


_loop_lock = threading.Lock()
_loop_started = False


def _start_event_loop() -> None:
    """libvirt delivers streams and keep-alives through an event loop, started once, before the first connection."""
    global _loop_started  # noqa: PLW0603 - libvirt's loop is one a process too
    with _loop_lock:
        if _loop_started:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_started = True


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
