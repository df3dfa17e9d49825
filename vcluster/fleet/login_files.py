"""The files that ssh reads to log in to the nodes of a cluster. All follow from the ledger and the keys."""

from __future__ import annotations

from vcluster.errors import VclusterError
from vcluster.fleet.ledger import ClusterFiles
from vcluster.model.keys import Keys
from vcluster.model.plan import Plan
from vcluster.render.ssh_files import has_blocks, has_keys

OTHERS_BITS = 0o077  # ssh refuses a private key that others may use


def require(files: ClusterFiles, plan: Plan) -> None:
    """Raise VclusterError if ssh cannot use a file of the cluster.

    A command that changes the cluster may be about to write them.
    """
    if files.is_locked():
        return
    if names := damaged(files, plan):
        files.read_keys()  # without the keys, repair cannot help
        raise VclusterError(
            f"cluster {plan.name} lacks files for ssh, or they are damaged: {', '.join(names)}",
            hint=f"vcluster repair {plan.name}",
        )


def damaged(files: ClusterFiles, plan: Plan) -> tuple[str, ...]:
    """The names of the files that are lost, or that ssh cannot use. Those of an earlier version may look different."""
    keys = files.find_keys()
    in_order = {
        files.identity.name: _is_identity(files, keys),
        files.known_hosts.name: has_keys(_text(files, files.known_hosts.name), plan, keys),
        files.ssh_config.name: has_blocks(_text(files, files.ssh_config.name), plan),
    }
    return tuple(name for name, is_in_order in in_order.items() if not is_in_order)


def _is_identity(files: ClusterFiles, keys: Keys | None) -> bool:
    """Whether the file has the private key that the nodes accept. Without the keys, any text may be it."""
    text = _text(files, files.identity.name)
    if not text or files.identity.stat().st_mode & OTHERS_BITS:
        return False
    return keys is None or text == keys.admin.private


def _text(files: ClusterFiles, name: str) -> str:
    """The text of a file of the cluster; empty if it cannot be read."""
    try:
        return (files.folder / name).read_text()
    except (OSError, ValueError):
        return ""
