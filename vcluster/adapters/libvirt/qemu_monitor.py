"""Commands to QEMU's monitor, through libvirt, that write the state of a domain's devices to a file, and load it.

The memory stays in the domain's own file: QEMU's capability x-ignore-shared leaves it out of the stream. QEMU receives
the file of the state as a descriptor, so it needs no right to open it. (docs/interop/qemu-qmp-ref in QEMU.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt

from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline

Lend = Callable[[Mapping[str, Any]], None]  # sends a command to a domain's QEMU, with the descriptor of a file

ENDED = "QEMU ended during "  # begins the message when it does
POLL_S = 0.005
END_POLLS, END_POLL_S = 5, 0.1
_IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}
# When QEMU has loaded a state, it announces each interface, and has the guest do so. By default a clone sends ten
# broadcasts, which all nodes of the cluster receive. Without any, QEMU 7.2 crashes when the clone reboots.
_ANNOUNCEMENTS = 1


@dataclass(frozen=True, slots=True)
class _Delivery:
    """How QEMU gets a descriptor, what it then calls the file, and what gives the descriptor back."""

    request: Mapping[str, Any]
    uri: str
    end: Mapping[str, Any] | None = None


_SET = {"fdset-id": 1_000_000}  # libvirt counts its own sets from 0
_BY_NAME = _Delivery({"execute": "getfd", "arguments": {"fdname": "state"}}, "fd:state")
_BY_SET = _Delivery({"execute": "add-fd", "arguments": _SET}, f"file:/dev/fdset/{_SET['fdset-id']}", _SET)
# Before QEMU 8.2 there is no `file:`. From 9.1 on, a file by `fd:` is deprecated, and QEMU 11.1 refuses it.
_SETS_SINCE = 9_001_000  # as libvirt writes 9.1.0


def transfer(domain: libvirt.virDomain, command: str, lend: Lend, deadline: Deadline) -> None:
    """Write the state ("migrate") or load it ("migrate-incoming"). `lend` passes the descriptor of the state's file.

    Raises VclusterError if QEMU cannot, or ends.
    """
    try:
        _transfer(domain, command, lend, deadline)
    except libvirt.libvirtError:
        if _ends(domain):
            raise VclusterError(f"{ENDED}{command}") from None
        raise
    except VclusterError as error:
        if type(error) is VclusterError and _has_ended(domain):
            raise VclusterError(f"{ENDED}{command}") from None
        raise


def _ends(domain: libvirt.virDomain) -> bool:
    """Whether QEMU has ended, or does so soon: libvirt may see the broken connection before the end."""
    for _ in range(END_POLLS):
        if _has_ended(domain):
            return True
        time.sleep(END_POLL_S)
    return False


def _has_ended(domain: libvirt.virDomain) -> bool:
    try:
        return not domain.isActive()
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)  # a template exists only while it runs


def _transfer(domain: libvirt.virDomain, command: str, lend: Lend, deadline: Deadline) -> None:
    delivery = _BY_SET if domain.connect().getVersion() >= _SETS_SINCE else _BY_NAME
    _execute(domain, "migrate-set-capabilities", {"capabilities": [_IGNORE_SHARED]})
    _execute(domain, "migrate-set-parameters", {"announce-rounds": _ANNOUNCEMENTS})
    lend(delivery.request)
    _execute(domain, command, {"uri": delivery.uri})
    while (found := _execute(domain, "query-migrate")).get("status") != "completed":
        if found.get("status") == "failed":
            raise VclusterError(f"QEMU cannot {command}: {found.get('error-desc', 'for an unknown reason')}")
        deadline.pause(POLL_S, "the state of the devices")
    if delivery.end:
        _execute(domain, "remove-fd", delivery.end)


def waits_for_state(domain: libvirt.virDomain) -> bool:
    """Whether a domain was started for a state that it has not received."""
    try:
        return bool(_execute(domain, "query-status")["status"] == "inmigrate")
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:  # libvirt's test driver has no QEMU
            return False
        raise


def _execute(domain: libvirt.virDomain, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    import libvirt_qemu  # noqa: PLC0415 - only clones need it

    request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
    if "error" in answer:
        raise VclusterError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
    return answer["return"]
