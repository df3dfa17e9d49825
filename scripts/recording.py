"""A recording of a command on a terminal, as an animated SVG with a light and a dark appearance.

The command runs on a pseudo-terminal of its own. A terminal emulator (pyte) turns its output into screens, so bars that
are drawn again and again look as they do for the user. The last screen is the text of the run: it is also what a viewer
without animations shows.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pyte

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 100, 24
FRAME_S = 0.5  # one screen for each half second is kept
HOLD_S = 4.0  # the last screen stays before the picture begins again
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.0, 17, 12
PICTURE = ROOT / "docs" / "img" / "create.svg"
TYPED = "sudo vcluster local create -n 4"

STYLE = """
text { font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #1f2328 }
.back { fill: #f6f8fa; stroke: #d0d7de }
.prompt { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .back { fill: #161b22; stroke: #30363d }
  .prompt { fill: #8b949e }
}
"""


@dataclass(frozen=True, slots=True)
class Frame:
    """A screen, and the moment from which it is shown, in seconds."""

    at_s: float
    lines: tuple[str, ...]


def record(argv: Sequence[str]) -> tuple[Frame, ...]:
    """Run a command and return its screens. Raises CalledProcessError if it fails."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    frames: list[Frame] = []
    for at_s, data in output_of(argv):
        stream.feed(data)
        lines = tuple(line.rstrip() for line in screen.display)
        if frames and at_s - frames[-1].at_s < FRAME_S:
            frames[-1] = Frame(frames[-1].at_s, lines)
        elif not frames or frames[-1].lines != lines:
            frames.append(Frame(at_s, lines))
    return tuple(frames)


def output_of(argv: Sequence[str]) -> Iterator[tuple[float, bytes]]:
    """What a command writes to its terminal, with the seconds since its start."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    started_s = time.monotonic()
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        while True:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the last writer has closed the terminal
                data = b""
            if not data:
                break
            yield time.monotonic() - started_s, data
    finally:
        os.close(ours)
        code = process.wait()
    if code != 0:
        raise subprocess.CalledProcessError(code, argv)


def text_of(frame: Frame) -> str:
    """The text of a screen, without the empty lines at its end."""
    return "\n".join(frame.lines).rstrip() + "\n"


def draw(frames: Sequence[Frame], typed: str, title: str) -> str:
    """The picture: each line of each screen is shown while it is on the terminal."""
    rows = max(len(text_of(frame).splitlines()) for frame in frames) + 1
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, rows * LINE_HEIGHT + 2 * MARGIN
    total_s = frames[-1].at_s + HOLD_S
    root = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", role="img",
        width=f"{width:g}", height=f"{height:g}",
    )  # fmt: skip
    root.set("{http://www.w3.org/XML/1998/namespace}space", "preserve")  # for viewers without `white-space`
    ET.SubElement(root, "title").text = title
    ET.SubElement(root, "desc").text = f"$ {typed}\n{text_of(frames[-1])}"
    ET.SubElement(root, "style").text = STYLE + "".join(keyframes(frames, total_s))
    size = {"width": f"{width - 1:g}", "height": f"{height - 1:g}"}
    ET.SubElement(root, "rect", {"class": "back", **size}, x="0.5", y="0.5", rx="6")
    line(root, 0, f"$ {typed}", "prompt")
    for number, frame in enumerate(frames):
        group = ET.SubElement(root, "g", {"class": f"f{number}"})
        for row, text in enumerate(frame.lines, 1):
            if text:
                line(group, row, text)
    ET.indent(root, "")
    return ET.tostring(root, encoding="unicode") + "\n"


def line(parent: ET.Element, row: int, text: str, kind: str = "") -> None:
    """One line of the terminal."""
    names = {"class": kind} if kind else {}
    ET.SubElement(parent, "text", names, x=str(MARGIN), y=str(MARGIN + (row + 1) * LINE_HEIGHT - 5)).text = text


def keyframes(frames: Sequence[Frame], total_s: float) -> Iterator[str]:
    """The style that shows each screen in its time. Without animations only the last one is visible."""
    for number, (frame, following) in enumerate(zip(frames, (*frames[1:], Frame(total_s, ())), strict=True)):
        begin, end = (100 * each / total_s for each in (frame.at_s, following.at_s))
        is_last = number == len(frames) - 1
        yield (
            f"@keyframes k{number} {{ 0%, 100% {{ visibility: hidden }}"
            f" {begin:.3f}% {{ visibility: visible }} {min(end, 99.999):.3f}% {{ visibility: hidden }} }}\n"
            f".f{number} {{ visibility: {'visible' if is_last else 'hidden'} }}\n"
            f"@media (prefers-reduced-motion: no-preference) {{ .f{number} {{ animation: k{number} {total_s:.2f}s"
            f" step-end infinite }} }}\n"
        )


def record_create() -> tuple[Frame, ...]:
    """A create of four clones in a server of the testbed, which has a snapshot, and is removed afterwards.

    A user types it with sudo: then vcluster prints its commands with sudo too.
    """
    testbed, name = [sys.executable, str(ROOT / "scripts" / "testbed")], f"record-{os.getpid()}"
    as_user = ["runuser", "-u", "operator", "--", "sudo"]  # of the testbed's users, the one without a password
    inside = [*testbed, "exec", name, "--", *as_user, str(ROOT / ".venv" / "bin" / "vcluster")]
    subprocess.run([*testbed, "up", "--owner", str(os.getpid()), name], check=True, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([*inside, "image", "warm"], check=True)
        return record([*inside, "local", "create", "-n", "4"])
    finally:
        subprocess.run([*testbed, "down", name], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Record what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    frames = record(given.command) if given.command else record_create()
    typed = " ".join(given.command) or TYPED
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    given.picture.write_text(draw(frames, typed, f"Recording: {typed}"))
    given.picture.with_suffix(".txt").write_text(f"$ {typed}\n{text_of(frames[-1])}")
    print(f"{len(frames)} screens in {given.picture}", file=sys.stderr)


if __name__ == "__main__":
    main()
