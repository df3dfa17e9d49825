"""Seeds: the three files of cloud-init's NoCloud source on an ISO 9660 file system with the label `cidata`."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import pycdlib

LABEL = "cidata"


def seed_iso(files: Mapping[str, str]) -> bytes:
    """The ISO image of a seed. Guests use the Rock Ridge and Joliet names; the ISO names must only be unique."""
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files.items()):
        content = text.encode()
        iso.add_fp(BytesIO(content), len(content), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image = BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
