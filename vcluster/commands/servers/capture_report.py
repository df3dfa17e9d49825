"""Report what a captured file shows. It needs the file alone: no root, and no cluster."""

from __future__ import annotations

from pathlib import Path

from vcluster.errors import RequestError, VclusterError
from vcluster.frames.analysis.capture_analysis import CaptureAnalysis
from vcluster.frames.analysis.captured_plan import read_plan
from vcluster.frames.pcapng_reader import PcapngReader
from vcluster.model.quoting import path_shown


def analyse(path: Path) -> CaptureAnalysis:
    """Read a file. Raises VclusterError with the byte of the file where it is wrong."""
    try:
        with path.open("rb") as source:
            reader = PcapngReader(source)
            analysis = CaptureAnalysis(read_plan(reader.comments), reader)
            analysis.run()
    except OSError as error:
        raise RequestError(f"cannot read {path_shown(path)}: {error.strerror}") from error
    except VclusterError as error:
        raise VclusterError(f"{path_shown(path)}: {error.message}", hint="vcluster capture run -o FILE") from error
    return analysis
