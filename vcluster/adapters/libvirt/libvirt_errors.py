"""libvirt's errors as ours, sorted by who must act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.model.facts import DNS_FIX, DNS_IS_TAKEN
from vcluster.util.events import timed_call

_DENIED = {libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_ACCESS_DENIED}


@contextmanager
def translated_errors(action: str) -> Iterator[None]:
    """Translate libvirt's errors; `action`, such as "starting node1", starts their messages."""
    try:
        with timed_call("libvirt", action):
            yield
    except libvirt.libvirtError as error:
        text = (error.get_error_message() or str(error)).strip()
        if error.get_error_code() in _DENIED or ("Permission denied" in text and "socket" in text):
            raise MissingError(f"{action}: libvirt denies access: {text}", hint="run it with sudo") from error
        if "No space left" in text:
            raise MissingError(f"{action}: the disk is full: {text}", hint="free space on the server's disk") from error
        if error.get_error_code() in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_SYSTEM_ERROR):
            raise MissingError(f"{action}: libvirt does not answer: {text}", hint="vcluster doctor") from error
        if "dnsmasq: failed to create listening socket" in text:
            raise ConflictError(f"{action}: {DNS_IS_TAKEN}", hint=DNS_FIX) from error
        raise VclusterError(f"{action}: {text}") from error
