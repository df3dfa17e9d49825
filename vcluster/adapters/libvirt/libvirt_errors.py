"""libvirt's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vcluster.errors import MissingError, VclusterError
from vcluster.util.events import timed_call

_REFUSED = {libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_ACCESS_DENIED}


@contextmanager
def errors(doing: str) -> Iterator[None]:
    """Translate libvirt's errors, sorted by who must act."""
    try:
        with timed_call("libvirt", doing):
            yield
    except libvirt.libvirtError as error:
        text = (error.get_error_message() or str(error)).strip()
        if error.get_error_code() in _REFUSED or ("Permission denied" in text and "socket" in text):
            raise MissingError(f"{doing}: libvirt refuses: {text}", hint="run it with sudo") from error
        if "No space left" in text:
            raise MissingError(f"{doing}: the disk is full: {text}", hint="make room and try again") from error
        if error.get_error_code() in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_SYSTEM_ERROR):
            raise MissingError(f"{doing}: libvirt does not answer: {text}", hint="vcluster doctor") from error
        raise VclusterError(f"{doing}: {text}") from error
