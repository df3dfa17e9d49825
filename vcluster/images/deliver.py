"""An image to a server that has not got it: each file once, by its digest, resumed where it was cut off."""

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
    """Bring an image of the store to the store below `root` on the agent's server, unless it is there."""
    state = agent.call("image_state", root=str(root), digest=image.digest, deadline=deadline, awaited=STAGE)
    if state["is_there"]:
        return
    manifest, folder = store.manifest(image.digest), store.root / image.digest
    sizes = {file: (folder / file).stat().st_size for file in manifest.files}
    with report.step(STAGE, name, awaiting="the image"):
        tell = _Progress(report, name, total=sum(sizes.values()))
        for file, size in sizes.items():
            offset = min(state["partial"].get(file, 0), size)
            with (folder / file).open("rb") as source:
                source.seek(offset)
                agent.send(
                    "receive_image_file", source, size - offset, progress=tell.of(offset), deadline=deadline,
                    awaited=f"{STAGE}: {file}", root=str(root), digest=image.digest, name=file, offset=offset,
                )  # fmt: skip
            tell.done += size
        agent.call(
            "finish_image", root=str(root), digest=image.digest, files=manifest.files,
            manifest=codec.to_json(manifest), deadline=deadline, awaited=f"{STAGE}: its digests",
        )  # fmt: skip


class _Progress:
    """Tells how far a delivery is and how fast it goes."""

    def __init__(self, report: Reporter, name: str, *, total: int) -> None:
        self._report, self._name, self._total = report, name, total
        self._began_s = time.monotonic()
        self._sent = 0
        self.done = 0

    def of(self, offset: int) -> Callable[[int], None]:
        """A listener to one file's bytes, which begin at an offset."""

        def listen(sent: int) -> None:
            now = self.done + offset + sent
            seconds = max(time.monotonic() - self._began_s, 0.001)
            text = f"{now // MIB} of {self._total // MIB} MiB, {now / MIB / seconds:.0f} MiB/s"
            self._report.emit("progress", STAGE, self._name, text, fraction=now / max(self._total, 1))

        return listen
