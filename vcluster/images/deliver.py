"""Transfer of an image to a server: each file once, by its digest. An interrupted transfer resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vcluster.agent.client import Agent
from vcluster.images.store import ImageStore
from vcluster.model import codec
from vcluster.model.spec import Image
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

MIB = 2**20
STAGE = "image"
BUSY_POLL_S = 0.5


def deliver(
    store: ImageStore, image: Image, agent: Agent, root: Path, *, name: str, deadline: Deadline, report: Reporter
) -> None:
    """Copy an image from the store to the folder `root` on the agent's server, unless it is there already.

    If another command copies it, this one waits. The agent then keeps the image from being removed until it ends.
    `name` is the server's name for progress. Raises VclusterError if a digest does not match after the transfer.
    """
    manifest, folder = store.manifest(image.digest), store.root / image.digest
    sizes = {file: (folder / file).stat().st_size for file in manifest.files}
    state = _begin(agent, root, image.digest, sizes, deadline)
    if state["is_there"]:
        return
    with report.step(STAGE, name, awaiting="the image"):
        progress = _Progress(report, name, total=sum(sizes.values()))
        for file, size in sizes.items():
            offset = min(state["partial"].get(file, 0), size)
            with (folder / file).open("rb") as source:
                source.seek(offset)
                agent.send(
                    "receive_image_file", source, size - offset, progress=progress.listener(offset), deadline=deadline,
                    awaited=f"image file {file}", root=str(root), digest=image.digest, name=file, offset=offset,
                )  # fmt: skip
            progress.done_bytes += size
        agent.call(
            "finish_image", root=str(root), digest=image.digest, files=manifest.files,
            manifest=codec.to_json(manifest), deadline=deadline, awaited="the digests of the image",
        )  # fmt: skip


def _begin(agent: Agent, root: Path, digest: str, sizes: Mapping[str, int], deadline: Deadline) -> dict[str, Any]:
    """The state of the image on the server, which this command may use or complete from now on."""
    while True:
        state: dict[str, Any] = agent.call(
            "begin_image", root=str(root), digest=digest, sizes=dict(sizes), deadline=deadline,
            awaited="the state of the image",
        )  # fmt: skip
        if not state["is_busy"]:
            return state
        deadline.pause(BUSY_POLL_S, f"{agent.name} to get the image from another command")


class _Progress:
    """Reports the progress and speed of a transfer."""

    def __init__(self, report: Reporter, name: str, *, total: int) -> None:
        self._report, self._name, self._total = report, name, total
        self._began_s = time.monotonic()
        self.done_bytes = 0

    def listener(self, offset: int) -> Callable[[int], None]:
        """A callback for the number of bytes sent of one file, which starts at an offset."""

        def report_sent(sent: int) -> None:
            total = self.done_bytes + offset + sent
            seconds = max(time.monotonic() - self._began_s, 0.001)
            text = f"{total // MIB} of {self._total // MIB} MiB, {total / MIB / seconds:.0f} MiB/s"
            self._report.emit("progress", STAGE, self._name, text, fraction=total / max(self._total, 1))

        return report_sent
