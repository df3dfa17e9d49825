"""Secrets are removed from texts and documents, and everything else stays."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vcluster.model.keys import make_pair
from vcluster.util.redaction import Redactor, allowed, secrets_of

PAIR = make_pair("someone@example.org")
KEY = PAIR.private
BODY = KEY.splitlines()[1:-1]
SECRET = "Tr0ub4dor3x"


@pytest.mark.parametrize(
    "text",
    [
        "password = {}",
        "Password: {}",
        'password="{}"',
        '{{"switch_password": "{}", "n": 1}}',
        "VCLUSTER_SWITCH_PASSWORD={}",
        "--password {} --other x",
        "sshpass -p {} ssh server1",
        "machine server1 login student password {}",
        "http_proxy=http://student:{}@proxy:3128/",
        "http://student:ab@cd/{}@proxy:3128/",
        "vcluster remote create --switch student:{}@server2",
        "Authorization: Basic {}",
        "proxy-authorization: Negotiate {} and more",
        "'Authorization': 'Bearer {}'",
        '{{"authorization": "Basic {}"}}',
        "curl -H bearer {}",
        "api_key={}&other=1",
        "X-Auth-Token: {}",
        "-object secret,id=s0,data={},format=raw",
        "pass\x1b[1mword={}",
        "root:$6$saltsalt${}abcdefgh:19000:0:99999:7:::",
        "token ghp_{}0123456789012345678901234567",
        "GET / eyJhbGciOiJIUzI1NiJ9.{}.signature",
    ],
)
def test_a_secret_in_a_text_is_removed(text: str) -> None:
    redactor = Redactor()
    assert SECRET not in redactor.text(text.format(SECRET))
    assert +redactor.removed != {}


@pytest.mark.parametrize(
    "text",
    [
        "node3: sshd with password authentication did not answer",
        "cannot ask for the password of student@server1: no terminal",
        "logged in as student@server1:22",
        "/var/lib/libvirt/images/vcluster/images/sha256-" + "0123456789abcdef" * 4,
        "/home/Student1/Projects/Cluster2024/Experiments/Run17/Results/Output42",
        "SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDmwCFuNi2OJAlXk4E",
        pytest.param(PAIR.public.rpartition(" ")[0], id="public key"),
        "link vx-lab-1@eth0: mtu 1450 qdisc noqueue state UP",
        "[    1.234567] virtio_net virtio0 eth0: renamed from lab0",
        "qemu+ssh://root@server2/system",
        "-object memory-backend-file,id=ram,mem-path=/x -object secret,id=masterKey0,format=raw,file=/x/master-key.aes",
        "uuid 6e6e6d0c-6a5b-5d3c-9c43-0c1f0f5a3a77, mac 02:00:00:00:00:01, 10.0.0.1/24",
        'File "/usr/lib/python3/dist-packages/vcluster/cli/main.py", line 107, in _run',
    ],
)
def test_a_text_without_secrets_stays(text: str) -> None:
    redactor = Redactor()
    assert redactor.text(text) == text
    assert +redactor.removed == {}


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"before\n{KEY}after\n",
        KEY.replace("\n", "\r\n"),
        KEY.replace("\n", "\\n"),
        "\n".join(f"[   12.345678] cloud-init[512]: {line}" for line in KEY.splitlines()),
        "\n".join(KEY.splitlines()[:3]),  # the end was cut off
        "\n".join(KEY.splitlines()[2:]),  # the beginning was cut off
        "\n".join(BODY),
        f"seen: {BODY[0]}",
    ],
    ids=["alone", "in a text", "console", "escaped", "journal", "beginning", "end", "middle", "line"],
)
def test_a_private_key_is_removed(text: str) -> None:
    redactor = Redactor()
    cleaned = redactor.text(text)
    assert [line for line in BODY if line in cleaned] == []
    assert redactor.removed
    assert ("before" in text) == ("before\n" in cleaned)
    assert ("after" in text) == ("after\n" in cleaned)


def test_a_known_secret_is_removed_in_each_of_its_forms() -> None:
    known = "p's/\"w ö%"
    redactor = Redactor([known, KEY])
    text = f"{known}\n{json.dumps(known)}\n{known!r}\nhttp://x/p%27s%2F%22w%20%C3%B6%25\n{BODY[-1]}"
    assert redactor.text(text).splitlines() == [
        "[removed: known secret]", '"[removed: known secret]"', "'[removed: known secret]'",
        "http://x/[removed: known secret]", "[removed: known secret]",
    ]  # fmt: skip


def test_a_short_value_is_not_searched_everywhere() -> None:
    assert Redactor(["lab"]).text("cluster lab") == "cluster lab"


def test_a_document_keeps_its_form() -> None:
    document: Any = {
        "name": "lab", "login": {"password": "env:SECRET", "host": "server1", "key": None}, "ports": [1, 2],
        "tokens": ["a", "b"], "error": f"password={SECRET}", "passphrase": "",
    }  # fmt: skip
    assert Redactor().document(document) == {
        "name": "lab", "login": {"password": "[removed: password]", "host": "server1", "key": None}, "ports": [1, 2],
        "tokens": "[removed: password]", "error": "password=[removed: password]", "passphrase": "",
    }  # fmt: skip


def test_only_allowed_fields_stay() -> None:
    document = {"plan": {"name": "lab", "new": SECRET, "nodes": [{"name": "node1", "new": SECRET}]}, "new": SECRET}
    assert allowed(document, {"plan", "name", "nodes"}) == {"plan": {"name": "lab", "nodes": [{"name": "node1"}]}}


def test_secrets_of_the_environment() -> None:
    environment = {
        "VCLUSTER_SWITCH_PASSWORD": "one", "GITHUB_TOKEN": "two", "https_proxy": "http://me:thr%40ee@proxy:3128",
        "PATH": "/usr/bin", "HOME": "/root",
    }  # fmt: skip
    assert secrets_of(environment) == ["one", "two", "thr%40ee", "thr@ee"]


@pytest.mark.parametrize(
    "piece",
    ["a", "password", "-----BEGIN PRIVATE KEY-----\n", "://a:", "x:", "-", "\x1b[", "authorization:", "AAAA ", "\\\"'"],
)
def test_a_secret_after_a_hostile_text_is_removed(piece: str) -> None:
    """Patterns without limits would take hours for some of these texts."""
    text = piece * ((1 << 16) // len(piece))
    assert SECRET not in Redactor().text(f"{text}\npassword: {SECRET}")
