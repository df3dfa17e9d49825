"""The configuration file: each key of each section, whole texts, and paths of files."""

from __future__ import annotations

from pathlib import Path

from tests.odd import values
from tests.odd.entry_points import EntryPoint
from tests.odd.values import Make
from vcluster.config import config_file, ini_file, passwords
from vcluster.config.environment_folders import folder_of
from vcluster.config.options import CLUSTER
from vcluster.config.readers import LINK_KEYS, SERVER_KEYS, SWITCH_KEYS, parse_host
from vcluster.errors import RequestError

HOST_PARTS = ("host", "user name", "number", "range", "this machine")
SOURCES = values.near("env:SECRET", "ask", "file:/x#y")
HERE = Path("config.ini")
GOOD = """\
[cluster]
name = red
nodes = 3
memory = 512 MiB
subnet = 10.0.7.0/24
storage = node2:20GiB
[switch]
host = admin@server2:22
password = ask
[server server1]
host = localhost
nodes = 2
[server server3]
host = 192.0.2.3
cpu = 4
ram = 8 GiB
hdd = 40 GiB
[link node2]
to = loss=1%
"""
LINE_TEXTS = values.near(
    "4", "512 MiB", "10.0.0.0/24", "node[1-3]", "student@server2:22", "env:SECRET", "10000:10100", "rate=1mbit,loss=1%"
)


def entry_points() -> list[EntryPoint]:
    """One for each key of each section, and those of the whole file."""
    sections = {"cluster": CLUSTER, "switch": SWITCH_KEYS, "server server1": SERVER_KEYS, "link node2": LINK_KEYS}
    keys = [_of_key(section, key) for section, table in sections.items() for key in table]
    return [
        *keys,
        EntryPoint("configuration file", _files(), _parse, ("config.ini",)),
        EntryPoint("bytes of a configuration file", values.damaged(GOOD.encode()), _read_bytes, ("config.ini",)),
        EntryPoint("path of a configuration file", values.near("config.ini", "a/b.ini"), _read),
        EntryPoint("host of a server", values.near("student@server2:22"), _read_host, HOST_PARTS),
        EntryPoint("source of a password", SOURCES, _find_password, ("the secret", "SECRET")),
        EntryPoint("folder in a variable", values.near("/var/lib/vcluster"), _folder, ("VCLUSTER_STATE_DIR",)),
    ]  # fmt: skip


def _of_key(section: str, key: str) -> EntryPoint:
    def run(text: str) -> None:
        lines = [line for line in GOOD.splitlines() if not (line.startswith(f"{key} ="))]
        lines.insert(lines.index(f"[{section}]") + 1, f"{key} = {text}")
        _parse("\n".join(lines))

    return EntryPoint(f"[{section.partition(' ')[0]}] {key}", LINE_TEXTS, run, ("config.ini",))


def _parse(text: str) -> None:
    config_file.parse(text, source=HERE)


def _files() -> Make:
    lines = values.lists(values.one_of(values.choice(GOOD.splitlines()), LINE_TEXTS), 0, 20)
    return values.one_of(lambda random: "\n".join(lines(random)), values.near(GOOD, inside=values.texts))


def _read_bytes(content: bytes) -> None:
    path = Path("../state/odd.ini")
    path.write_bytes(content)
    config_file.parse(*_loaded(path), source=HERE)


def _loaded(path: Path) -> tuple[str]:
    try:
        return (ini_file.load(path)[0],)
    except RequestError as error:
        raise RequestError(error.message.replace("../state/odd.ini", "config.ini"), hint=error.hint) from error


def _read(text: str) -> None:
    if "\0" not in text and not text.startswith("/"):
        config_file.read(Path(text))


def _find_password(text: str) -> None:
    passwords.find(text, environment={}, ask=None, secret="the secret")


def _read_host(text: str) -> None:
    parse_host(text)


def _folder(text: str) -> None:
    folder_of({"VCLUSTER_STATE_DIR": text}, "VCLUSTER_STATE_DIR")
