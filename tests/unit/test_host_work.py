"""The host's work for a create, as scripts/bench prints it: phases, calls of libvirt, sums, and what they explain."""

from __future__ import annotations

from scripts.measure_host import Measured, Use, libvirt_calls, phases, report

BEGAN_S = 1_000_000.0
LOG = """\
1970-01-12 13:46:40.250+0000: 7: info : libvirt version: 9.0.0
1970-01-12 13:46:40.500+0000: 7: debug : virConnectOpen:1329 : name=qemu:///system
1970-01-12 13:46:40.501+0000: 7: debug : virConnectOpenInternal:900 : Split "qemu:///system" to URI components:
1970-01-12 13:46:41.250+0000: 8: debug : virDomainCreate:6720 : dom=0x7f, (VM: name=lab.node1, uuid=0-0)
"""


def stage(name: str, node: str, started_s: float, seconds: float) -> dict[str, object]:
    """A stage as `timing -o json` prints it."""
    return {"stage": name, "node": node, "started_s": started_s, "seconds": seconds}


def test_a_phase_ends_with_the_last_node() -> None:
    """Stages of several nodes overlap. A stage that ends before an earlier one has no phase of its own."""
    times = [
        stage("check", "node2", 2.0, 3.0),
        stage("clone", "node1", 0.1, 0.9),
        stage("clone", "node2", 0.1, 1.9),
        stage("sshd", "node1", 1.0, 0.5),
    ]
    expected = [("start", BEGAN_S), ("clone", BEGAN_S + 2.0), ("check", BEGAN_S + 5.0)]
    assert phases(BEGAN_S + 5.0, times) == expected


def test_calls_of_libvirt_are_lines_with_arguments() -> None:
    """A line about work inside libvirt is no call."""
    assert libvirt_calls(LOG.splitlines()) == [(BEGAN_S + 0.5, "virConnectOpen"), (BEGAN_S + 1.25, "virDomainCreate")]


def test_the_tables_have_the_numbers_of_one_node() -> None:
    """Uses are summed by phase and program, and compared with the time of the whole machine."""
    measured = Measured(
        nodes=2,
        phases=[("clone", BEGAN_S + 2), ("check", BEGAN_S + 5)],
        uses=[
            Use(BEGAN_S + 1, "libvirtd", cpu_s=1.0, written_bytes=4 << 20),
            Use(BEGAN_S + 2, "libvirtd", cpu_s=2.0),
            Use(BEGAN_S + 1, "qemu", started=2),
            Use(BEGAN_S + 4, "qemu", cpu_s=0.5),
            Use(BEGAN_S + 9, "vcluster", cpu_s=0.3),
        ],
        libvirt_calls=[(BEGAN_S + 1, "virDomainCreate"), (BEGAN_S + 3, "virDomainCreate")],
        machine_cpu_s=9.0,
        guest_s=5.0,
    )
    lines = [line.split() for line in report(measured).splitlines()]
    assert ["clone", "1.50", "2.00", "1.0", "0.5"] in lines
    assert ["check", "0.25", "0.00", "0.0", "0.5"] in lines
    assert ["end", "0.15", "0.00", "0.0", "0.0"] in lines
    assert ["total", "1.90", "2.00", "1.0", "1.0"] in lines
    assert ["clone", "libvirtd", "1.50", "2.00", "0.0"] in lines
    assert lines[-1] == ["The", "tables", "account", "for", "95%", "of", "the", "host's."]
