"""Several commands at one image of a server, each with its own agent, a process as on a server."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import samples
from tests.ssh.test_agent_start import Local
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import ConflictError, VclusterError
from vcluster.images import deliver
from vcluster.images.store import ImageStore, Manifest
from vcluster.model import codec
from vcluster.util.deadline import Deadline
from vcluster.util.events import Event, Reporter

pytestmark = pytest.mark.ssh

CONTENT = bytes(range(256)) * 4000
FILES = {"disk.qcow2": hashlib.sha256(CONTENT).hexdigest()}
DIGEST = f"sha256-{FILES['disk.qcow2']}"
MANIFEST = Manifest("debian12", DIGEST, "built", "today", 1 << 30, "", (), "", FILES)
SIZES = {"disk.qcow2": len(CONTENT)}
IN_USE = "another command uses image"

Start = Callable[[], RemoteAgent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[RemoteAgent] = []

    def start() -> RemoteAgent:
        made.append(RemoteAgent(Local(), folder=tmp_path / "lib" / "agent"))
        return made[-1]

    yield start
    for agent in made:
        agent.close()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """The store of the controller."""
    folder = tmp_path / "here" / DIGEST
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").write_bytes(CONTENT)
    (folder / "manifest.json").write_text(codec.to_json(MANIFEST))
    return ImageStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The store of the server."""
    return tmp_path / "server" / "there"


def call(agent: RemoteAgent, operation: str, there: Path, **arguments: object) -> object:
    return agent.call(operation, deadline=Deadline(20), root=str(there), digest=DIGEST, **arguments)


def send(agent: RemoteAgent, there: Path, content: bytes, offset: int = 0) -> None:
    agent.send(
        "receive_image_file", io.BytesIO(content), len(content), deadline=Deadline(20),
        root=str(there), digest=DIGEST, name="disk.qcow2", offset=offset,
    )  # fmt: skip


class Delivery(threading.Thread):
    """The delivery of another command."""

    def __init__(self, store: ImageStore, agent: RemoteAgent, there: Path) -> None:
        super().__init__(daemon=True)
        self.store, self.agent, self.there, self.events = store, agent, there, list[Event]()
        self.start()

    def run(self) -> None:
        image = replace(samples.DIRECT, digest=DIGEST)
        report = Reporter((self.events.append,))
        deliver.deliver(self.store, image, self.agent, self.there, name="red", deadline=Deadline(20), report=report)


def test_a_second_delivery_waits_for_the_first(store: ImageStore, start: Start, there: Path) -> None:
    first = start()
    call(first, "begin_image", there, sizes=SIZES)
    send(first, there, CONTENT[:100_000])
    second = Delivery(store, start(), there)
    time.sleep(1)
    assert second.is_alive()
    assert not second.events
    send(first, there, CONTENT[100_000:], 100_000)
    call(first, "finish_image", there, files=FILES, manifest=codec.to_json(MANIFEST))
    second.join(20)
    assert not second.is_alive()
    assert not second.events  # it sent nothing
    assert ImageStore(there).verify(MANIFEST) == ()


def test_a_delivery_continues_that_of_a_killed_command(store: ImageStore, start: Start, there: Path) -> None:
    first = start()
    call(first, "begin_image", there, sizes=SIZES)
    send(first, there, CONTENT[:500_000])
    second = Delivery(store, start(), there)
    time.sleep(1)
    first.close()
    second.join(20)
    assert ImageStore(there).verify(MANIFEST) == ()
    assert min(event.fraction for event in second.events if event.fraction) > 500_000 / len(CONTENT)


def test_an_import_on_the_server_leaves_a_running_delivery_alone(start: Start, there: Path) -> None:
    first = start()
    call(first, "begin_image", there, sizes=SIZES)
    send(first, there, CONTENT)
    killed = there / ".unfinished-of-a-killed-import"
    killed.mkdir()
    with ImageStore(there)._unfinished():
        assert not killed.exists()
    call(first, "finish_image", there, files=FILES, manifest=codec.to_json(MANIFEST))
    assert ImageStore(there).images() == (MANIFEST,)


def test_an_image_is_removed_when_no_command_uses_it(store: ImageStore, start: Start, there: Path) -> None:
    first, second, third = start(), start(), start()
    call(first, "begin_image", there, sizes=SIZES)
    with pytest.raises(ConflictError, match=IN_USE):
        call(third, "remove_image", there)
    first.close()
    Delivery(store, second, there).join(20)
    with pytest.raises(ConflictError, match=IN_USE):
        call(third, "remove_image", there)
    assert ImageStore(there).verify(MANIFEST) == ()
    with pytest.raises(ConflictError, match=IN_USE):  # on the server itself
        ImageStore(there).remove(MANIFEST, users=())
    second.close()
    assert call(third, "remove_image", there) is True
    assert not there.exists()
    assert call(third, "remove_image", there) is False


def test_an_image_of_a_create_on_this_machine_is_not_removed(store: ImageStore) -> None:
    with store.in_use(DIGEST), store.in_use(DIGEST), pytest.raises(ConflictError, match=IN_USE):
        store.remove(MANIFEST, users=())
    assert store.images() == (MANIFEST,)
    store.remove(MANIFEST, users=())
    with pytest.raises(ConflictError, match="another command removes the image"), store.in_use(DIGEST):
        pytest.fail("the image is gone")


def test_an_image_with_a_file_that_is_too_short_is_not_used(store: ImageStore, start: Start, there: Path) -> None:
    Delivery(store, start(), there).join(20)
    (there / DIGEST / "disk.qcow2").write_bytes(CONTENT[:103_000])
    with pytest.raises(VclusterError, match=r"disk\.qcow2 has 103000 bytes instead of 1024000$"):
        call(start(), "begin_image", there, sizes=SIZES)
