"""The graph of a cluster: its model, and the text and the pictures that are written from its JSON document."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from tests.results import validated
from vcluster.cli.clusters import graph as command
from vcluster.cli.graphs import dot_writer, graph_labels, graph_text, mermaid_writer, svg_writer
from vcluster.errors import MissingError
from vcluster.model import codec
from vcluster.planning.traffic import cluster_graph
from vcluster.planning.traffic.cluster_graph import ClusterGraph
from vcluster.planning.traffic.port_rates import PortTraffic

GOLDEN = Path(__file__).parent.parent / "golden" / "graph"
WRITERS: dict[str, Callable[[Any], str]] = {
    "svg": svg_writer.text,
    "mmd": mermaid_writer.text,
    "dot": dot_writer.text,
    "txt": lambda graph: graph_text.text(graph) + "\n",
}
LIMITS = [
    samples.reading("node2", "from", rate_bits=10_000_000, queue_bytes=65_536),
    samples.reading("node2", "to", "node1", loss_ppm=10_000),
]
LOAD = [
    PortTraffic("node1", "vx-lab-1", True, from_rate_bits=95_640_000, to_rate_bits=1_200),
    PortTraffic("node2", "vx-lab-2", True, from_rate_bits=12, to_rate_bits=0),
    PortTraffic("node3", "vx-lab-3", False),
]
FAULTS = {"node1": ("cut to node3, 8 s left",)}


def local() -> ClusterGraph:
    return cluster_graph.graph_of(samples.plan(2), [], {"node1", "node2"})


def shared() -> ClusterGraph:
    return cluster_graph.graph_of(
        samples.shared_plan(), LIMITS, {"node1", "node2"}, faults=FAULTS, load=LOAD, load_s=5.0
    )


def by_hand() -> ClusterGraph:
    """A cluster whose switch vcluster cannot read."""
    return cluster_graph.graph_of(samples.shared_plan(sets_up_switch=False))


GRAPHS = {"local": local, "shared": shared, "by-hand": by_hand}


def document(made: ClusterGraph) -> Any:
    return json.loads(codec.to_json(made))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_fits_its_schema(name: str) -> None:
    validated(["graph"], document(GRAPHS[name]()))


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_written_like_the_golden_file(name: str, ending: str) -> None:
    """UPDATE_GOLDEN=1 writes the files."""
    path, written = GOLDEN / f"{name}.{ending}", WRITERS[ending](document(GRAPHS[name]()))
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(written)
    assert written == path.read_text()


def test_a_graph_has_all_parts_of_a_cluster() -> None:
    found = shared()
    assert [(one.name, one.has_switch) for one in found.servers] == [("middle", True), ("red", False), ("blue", False)]
    assert [(one.node, one.server, one.switch_server) for one in found.tunnels] == [
        (node.name, node.server, "middle") for node in samples.shared_plan().nodes
    ]
    assert [(port.name, port.server, port.present) for port in found.ports if port.node == "node3"] == [
        ("vp-lab-3", found.nodes[2].server, None),
        ("vx-lab-3", found.nodes[2].server, None),
        ("vx-lab-3", "middle", False),
    ]
    assert [len(link.shaping or ()) for link in found.links] == [0, 2, 0]


def test_what_cannot_be_read_is_not_known() -> None:
    found = by_hand()
    assert {link.shaping for link in found.links} == {None}
    assert {port.present for port in found.ports} == {None}
    assert found.servers[0].bridges == (found.switch.bridge,)


@pytest.mark.parametrize("ending", WRITERS)
def test_each_form_shows_limits_faults_and_load(ending: str) -> None:
    written = WRITERS[ending](document(shared()))
    for text in ("from rate=10mbit", "queue=64KiB", "to peer node1 loss=1%", "cut to node3", "95.6 Mbit/s", "no port"):
        assert text in written.replace("#59;", ";")


@pytest.mark.parametrize(
    ("bits_s", "shown"),
    [(None, "?"), (0, "0 bit/s"), (999, "999 bit/s"), (1_000, "1 kbit/s"), (95_640_000, "95.6 Mbit/s")],
)
def test_a_rate_has_a_unit(bits_s: int | None, shown: str) -> None:
    assert graph_labels.rate(bits_s) == shown


def luminance(color: str) -> float:
    """The relative luminance of a colour (WCAG 2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_texts_have_enough_contrast_on_light_and_on_dark_pages() -> None:
    """4.5 is the least that WCAG asks for of text."""
    for page in ("#ffffff", "#000000"):
        assert contrast(graph_labels.PLAIN, page) >= 4.5
    for box in (graph_labels.NODE, graph_labels.SWITCH):
        assert contrast(graph_labels.INK, box) >= 4.5
    light, dark = svg_writer.STYLE.split("@media")
    for style in (light, dark):
        paper = re.search(r"\.paper { fill: (#\w+)", style)
        text = re.search(r"text { .*fill: (#\w+)", style)
        assert paper is not None
        assert text is not None
        assert contrast(paper[1], text[1]) >= 4.5


NAMES = st.text(min_size=1, max_size=20)


@given(name=NAMES)
def test_a_name_of_a_server_does_not_change_the_form(name: str) -> None:
    """Each form still has its parts, and the name appears as text only."""
    plain, odd = document(local()), document(local())
    for server in odd["servers"]:
        server["name"] = name
    for node in odd["nodes"]:
        node["server"] = name
    odd["switch"]["server"] = name
    tree, wanted = (ElementTree.fromstring(svg_writer.text(each)) for each in (odd, plain))
    assert [each.tag for each in tree.iter()] == [each.tag for each in wanted.iter()]
    for write in (mermaid_writer.text, dot_writer.text):
        assert write(odd).count("\n") == write(plain).count("\n")
    assert not set(re.findall(r"\[\"(.*)\"\]", mermaid_writer.text(odd))[0]) & set('"<>[]{}|`\\')


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
@pytest.mark.parametrize("name", GRAPHS)
def test_graphviz_reads_the_graph(name: str) -> None:
    subprocess.run(["dot", "-Tsvg"], input=dot_writer.text(document(GRAPHS[name]())).encode(), check=True, timeout=60)


@pytest.mark.parametrize("value", ["svg", "lab.png", "lab", "", "lab.svg\0", "xml"])
def test_another_ending_is_refused(value: str) -> None:
    done = CliRunner().invoke(command.graph, ["-o", value])
    assert done.exit_code == 2
    assert ".svg, .mmd, .dot or .json" in done.output


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path, other = tmp_path / "lab.svg", tmp_path / "other"
    other.write_text("untouched")
    path.symlink_to(other)
    command._write(path, "new", None)
    assert (path.read_text(), other.read_text(), path.is_symlink()) == ("new", "untouched", False)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lab.svg", "other"]
    with pytest.raises(MissingError, match="cannot write"):
        command._write(tmp_path / "missing" / "lab.svg", "new", None)
