"""The domain that is started to see if libvirt can start one. It has no disk and no network. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vcluster.render.xml_tree import Element, element, text_of

MEMORY_MIB = 16


def trial_xml(name: str, uuid: str, tuning: Sequence[Element] = (), *, vcpus: int = 1) -> str:
    """The XML of the domain, with further elements. It is emulated, so that it does not depend on KVM."""
    return text_of(
        element(
            "domain",
            element("name", name),
            element("uuid", uuid),
            element("memory", str(MEMORY_MIB), unit="MiB"),
            element("vcpu", str(vcpus)),
            *tuning,
            element("os", element("type", "hvm", arch="x86_64")),
            element(
                "devices",
                element("controller", type="usb", model="none"),
                element("memballoon", model="none"),
            ),
            type="qemu",
        )
    )
