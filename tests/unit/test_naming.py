"""Allowed names, and names derived from them."""

from __future__ import annotations

import fnmatch
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vcluster.errors import RequestError
from vcluster.model import naming

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in naming._RESERVED
)


@pytest.mark.parametrize("name", ["lab", "a", "a1", "my-lab", "x" * 32])
def test_good_cluster_names(name: str) -> None:
    assert naming.check_cluster_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
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
def test_bad_cluster_names(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        naming.check_cluster_name(name)
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 120


@pytest.mark.parametrize(
    ("nodeset", "names"),
    [
        ("red[01-03]", ("red01", "red02", "red03")),
        ("a,,b", ("a", "b")),
        ("head, red1", ("head", "red1")),
        ("zeta,alpha", ("zeta", "alpha")),
        ("r[1-2]b[1-2]", ("r1b1", "r1b2", "r2b1", "r2b2")),
        ("r[9-11]", ("r9", "r10", "r11")),
        ("r[09-11]x", ("r09x", "r10x", "r11x")),
        ("r[3,1]b[2,1]", ("r3b2", "r3b1", "r1b2", "r1b1")),
        ("r[5-9/2,1]", ("r5", "r7", "r9", "r1")),
    ],
)
def test_names_of_a_nodeset_have_the_written_order(nodeset: str, names: tuple[str, ...]) -> None:
    assert naming.expand(nodeset) == names


@pytest.mark.parametrize(
    ("nodeset", "message"),
    [
        ("", "gives no name"),
        (",", "gives no name"),
        ("red[1", "is not a nodeset"),
        ("red1]", "is not a nodeset"),
        ("red[1]]", "is not a nodeset"),
        ("red[[1]", "is not a nodeset"),
        ("red[]", "is not a nodeset"),
        ("red[1,]", "is not a nodeset"),
        ("red[a-b]", "is not a nodeset"),
        ("red[5-1]", "is not a nodeset"),
        ("a,a", "is given twice"),
        ("red[1-3],red2", "is given twice"),
        ("@all", "@all"),
        ("red[1-3]!red2", "is not a name"),
        ("red*", "is not a name"),
        ("red[1-99999999]", "gives 99999999 names"),
        ("r[1-9999][1-9999]", "gives 99980001 names"),
        ("r[1 - 999999]", "'1 - 999999' is not a range"),
        ("r[1,2_0-9_999]", "'2_0-9_999' is not a range"),
        ("r[+1-999999]", "'+1-999999' is not a range"),
        ("red[1-" + "9" * 5000 + "]", "ten digits"),
        ("a;rm -rf", "is not a name"),
        ("x" * 64, "has 64 characters"),
        ("nöde[1-2]", "is not a name"),
        ("[1-2]", "is not a name"),
    ],
)
def test_bad_node_names(nodeset: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as raised:
        naming.expand(nodeset)
    assert len(raised.value.message) < 140


@pytest.mark.parametrize(
    ("cluster_number", "count", "first", "last"),
    [
        (1, 5, "node001", "node005"),
        (11, 5, "node051", "node055"),
        (199, 5, "node991", "node995"),
        (200, 5, "node0996", "node1000"),
        (201, 5, "node1001", "node1005"),
        (400, 5, "node1996", "node2000"),
        (1, 1, "node001", "node001"),
        (1, 999, "node001", "node999"),
        (1, 1000, "node0001", "node1000"),
        (9999, 4094, "node40931813", "node40935906"),
    ],
)
def test_names_numbered_across_clusters(cluster_number: int, count: int, first: str, last: str) -> None:
    names = naming.numbered_node_names(cluster_number, count)
    assert (names[0], names[-1], len(names)) == (first, last, count)


@given(st.integers(1, 9998), st.integers(1, 300))
def test_clusters_of_one_size_never_share_a_number(cluster_number: int, count: int) -> None:
    first, second = (naming.numbered_node_names(number, count) for number in (cluster_number, cluster_number + 1))
    numbers = [int(name.removeprefix("node")) for name in (*first, *second)]
    assert numbers == list(range(numbers[0], numbers[0] + 2 * count))
    assert len({len(name) for name in first}) == 1


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
@example("abcdefgh", 4094)  # the shortest name that is too long to stand whole in an interface name
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
def test_resources_of_two_clusters_have_different_names(clusters: list[str]) -> None:
    one, other = clusters
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
def test_texts_that_are_not_owner_labels(text: str) -> None:
    assert naming.parse_alias(text) is None
    assert naming.parse_table_name(text.replace(":", "-")) is None


OWNERS = (naming.former_owner_id("4c4c4544-0000\n"), naming.owner_id(naming.maker_digits("4c4c4544", 1000), "00c0ffee"))


@pytest.mark.parametrize("cluster", ["lab", "a", "red-blue", "x" * 32])
@pytest.mark.parametrize("owner", OWNERS)
def test_owner_labels_are_read_back(cluster: str, owner: str) -> None:
    assert naming.parse_alias(naming.alias(cluster, owner)) == (cluster, owner)
    assert naming.parse_table_name(naming.table_name(cluster, owner)) == (cluster, owner)
    assert naming.parse_table_name(naming.links_table_name(cluster, owner)) == (cluster, owner)


def test_an_owner_id_shows_the_user_and_the_machine() -> None:
    maker = naming.maker_digits("one\n", 1000)
    assert maker == naming.maker_digits("one", 1000)
    assert len({maker, naming.maker_digits("one", 1001), naming.maker_digits("other", 1000)}) == 3
    assert naming.is_by(maker, naming.owner_id(maker, "00c0ffee"))
    assert not naming.is_by(naming.maker_digits("one", 1001), naming.owner_id(maker, "00c0ffee"))
    assert not naming.is_by(maker, maker)  # the form of a former owner id


@pytest.mark.parametrize("machine_id", ["", "\n", "uninitialized\n"])
def test_a_machine_without_a_machine_id_has_made_nothing(machine_id: str) -> None:
    maker = naming.maker_digits(machine_id, 0)
    assert not naming.is_by(maker, naming.owner_id(maker, "00c0ffee"))


# 80-vm-vt.network, 80-container-ve.network and 80-container-host0.network of systemd
@pytest.mark.parametrize("pattern", ["vt-*", "ve-*", "vz-*", "mv-*", "wl*", "en*", "eth*", "host0"])
def test_no_interface_has_a_name_that_systemd_networkd_configures(pattern: str) -> None:
    names = [
        naming.bridge_name("lab"),
        naming.management_bridge_name("lab"),
        *(
            name("lab", 1)
            for name in (naming.node_bridge_name, naming.tunnel_name, naming.port_name, naming.management_port_name)
        ),
    ]
    assert not fnmatch.filter(names, pattern)
