"""Transfer of an image to a server: each file once, by its digest. An interrupted transfer resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vcluster.agent.client import Agent
from vcluster.images.store import ImageStore
from vcluster.model import codec
from vcluster.model.spec import Image
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

MIB = 2**20
STAGE = "image"


def deliver(
    store: ImageStore, image: Image, agent: Agent, root: Path, *, name: str, deadline: Deadline, report: Reporter
) -> None:
    """Copy an image from the store to the folder `root` on the agent's server, unless it is there already.

    `name` is the server's name for progress. Raises VclusterError if a digest does not match after the transfer.
    """
    state = agent.call(
        "image_state", root=str(root), digest=image.digest, deadline=deadline, awaited="the state of the image"
    )
    if state["is_there"]:
        return
    manifest, folder = store.manifest(image.digest), store.root / image.digest
    sizes = {file: (folder / file).stat().st_size for file in manifest.files}
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
