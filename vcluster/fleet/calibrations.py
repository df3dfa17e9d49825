"""The calibration of a cluster on disk, in its folder. It is removed with the cluster."""

from __future__ import annotations

from vcluster.fleet.ledger import ClusterFiles
from vcluster.model import codec
from vcluster.model.traffic.calibration_record import Calibration

NAME = "calibration.json"


def write(files: ClusterFiles, calibration: Calibration) -> None:
    """Write the calibration of a cluster."""
    files.write(files.folder / NAME, codec.to_json(calibration))


def read(files: ClusterFiles) -> Calibration | None:
    """The calibration of a cluster; None if there is none, or if the file cannot be read."""
    try:
        return codec.from_json((files.folder / NAME).read_text(), Calibration)
    except (OSError, ValueError):
        return None
