"""Names: what is allowed, what follows from them."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vcluster import naming
from vcluster.errors import RequestError

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in naming._RESERVED
)


@pytest.mark.parametrize("name", ["lab", "a", "a1", "my-lab", "x" * 32])
def test_good_cluster_names(name: str) -> None:
    assert naming.check_cluster_name(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is not a name"),
        ("Lab", "is not a name"),
        ("my lab", "is not a name"),
        ("a/b", "is not a name"),
        ("../etc", "is not a name"),
        ("-lab", "is not a name"),
        ("lab-", "is not a name"),
        ("1lab", "is not a name"),
        ("lab\n", "is not a name"),
        ("l'ab", "is not a name"),
        ('l"ab', "is not a name"),
        ("<lab/>", "is not a name"),
        ("$(id)", "is not a name"),
        ("läb", "is not a name"),
        ("\u217cab", "is not a name"),  # looks like an l
        ("x" * 33, "has 33 characters"),
        ("x" * 5000, "has 5000 characters"),
        ("localhost", "is reserved"),
    ],
)
def test_bad_cluster_names(name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        naming.check_cluster_name(name)
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 120


@pytest.mark.parametrize(
    ("count", "nodeset", "names"),
    [
        (None, None, ("node1", "node2", "node3", "node4")),
        (2, None, ("node1", "node2")),
        (None, "red[01-03]", ("red01", "red02", "red03")),
        (None, "a,,b", ("a", "b")),
        (2, "head,red1", ("head", "red1")),
        (None, "zeta,alpha", ("zeta", "alpha")),
        (None, "r[1-2]b[1-2]", ("r1b1", "r1b2", "r2b1", "r2b2")),
    ],
)
def test_node_names(count: int | None, nodeset: str | None, names: tuple[str, ...]) -> None:
    assert naming.node_names(count, nodeset, count_default=4) == names


@pytest.mark.parametrize(
    ("count", "nodeset", "words"),
    [
        (0, None, "0 nodes make no cluster"),
        (-1, None, "-1 nodes make no cluster"),
        (99999, None, "99999 nodes make no cluster"),
        (3, "a,b", "--names gives 2 names, -n asks for 3 nodes"),
        (None, "", "gives no name"),
        (None, "red[1", "is not a nodeset"),
        (None, "red[5-1]", "is not a nodeset"),
        (None, "a,a", "is given twice"),
        (None, "@all", "@all"),
        (None, "red[1-99999999]", "gives 99999999 names"),
        (None, "r[1-9999][1-9999]", "gives 99980001 names"),
        (None, "red[1-" + "9" * 5000 + "]", "ten digits"),
        (None, "a;rm -rf", "is not a name"),
        (None, "x" * 64, "has 64 characters"),
        (None, "nöde[1-2]", "is not a name"),
    ],
)
def test_bad_node_names(count: int | None, nodeset: str | None, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        naming.node_names(count, nodeset, count_default=4)


@given(st.text(max_size=60))
@example("0\n]")
@example("a\r[")
def test_any_text_is_a_nodeset_or_a_clear_error(text: str) -> None:
    try:
        names = naming.expand(text)
    except RequestError as error:
        assert "\n" not in error.message
        return
    assert all(set(name) <= set(string.ascii_lowercase + string.digits + "-") for name in names)
    assert len(set(names)) == len(names) <= naming.NODES_MAX


@given(NAMES, st.integers(1, naming.NODES_MAX))
def test_interface_names_fit_the_kernel(cluster: str, index: int) -> None:
    names = {
        naming.bridge_name(cluster),
        naming.management_bridge_name(cluster),
        naming.port_name(cluster, index),
        naming.management_port_name(cluster, index),
    }
    assert len(names) == 4
    assert all(len(name) <= naming.INTERFACE_NAME_MAX for name in names)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_what_two_clusters_own_differs(pair: list[str]) -> None:
    one, other = pair
    assert naming.libvirt_name(one) != naming.libvirt_name(other)
    assert naming.uuid_for("pool", one) != naming.uuid_for("pool", other)
    assert naming.domain_name(one, "node1") != naming.domain_name(other, "node1")
    assert naming.mac_for(one, "node1", "lab0") != naming.mac_for(other, "node1", "lab0")


def test_uuids_of_different_kinds_differ() -> None:
    assert naming.uuid_for("pool", "lab") != naming.uuid_for("network", "lab")
    assert naming.uuid_for("pool", "lab") == naming.uuid_for("pool", "lab")


def test_macs_avoid_those_taken() -> None:
    first = naming.mac_for("lab", "node1", "lab0")
    assert re.fullmatch(r"02(:[0-9a-f]{2}){5}", first)
    assert naming.mac_for("lab", "node1", "lab0", {first}) != first


@pytest.mark.parametrize(
    "text",
    [
        "vcluster:lab",
        "vcluster:",
        "vcluster",
        "other:lab:0badcafe",
        "",
        "vcluster:a b:0badcafe",
        "vcluster:lab:0BADCAFE",
    ],
)
def test_what_is_no_mark(text: str) -> None:
    assert naming.parse_alias(text) is None
    assert naming.parse_table_name(text.replace(":", "-")) is None


@pytest.mark.parametrize("cluster", ["lab", "a", "red-blue", "x" * 32])
def test_marks_are_read_back(cluster: str) -> None:
    owner = naming.owner_of("4c4c4544-0000\n")
    assert naming.parse_alias(naming.alias(cluster, owner)) == (cluster, owner)
    assert naming.parse_table_name(naming.table_name(cluster, owner)) == (cluster, owner)


def test_machines_differ() -> None:
    assert naming.owner_of("one") != naming.owner_of("other")
    assert naming.owner_of("one\n") == naming.owner_of("one")
