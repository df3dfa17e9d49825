"""The page of promises: what `vcluster verify` inspects, and what restores it."""

from __future__ import annotations

from reference_pages.text import NOTE, code, table
from vcluster.model.promises import PROMISES, Promise

INTRODUCTION = """\
`vcluster verify` inspects each of these promises on each server of a cluster whose nodes run; it changes nothing.
It exits with 1 when a promise is broken.
Then it prints the thing, what it found, what the plan has, and the command that fixes it.
On each server it sends one request to the agent, which reads there as root.

The ids are stable: scripts may use them.
In the commands, `NAME` stands for the cluster, and `THING` for the thing that `verify` prints.
`PLANNED` stands for the planned value.
`verify` prints more exact commands for files, modes, owners, and things outside the plan.
"""
LIMITS = """\
## What it does not inspect

- What is inside nodes: `vcluster check` tests that they reach each other, and that MPI runs.
- The content of disks and images; `vcluster image verify` compares the files of an image with their digests.
- Sockets that receive from all addresses and belong to other programs of the server: the rules keep nodes from them.
- Queries of the management network's DNS server, which have a port of 1024 or higher.
- A switch that `vcluster switch up` made: there is no ledger of its cluster on that server.
"""


def page() -> str:
    """The page in Markdown."""
    rows = [(code(promise.id), promise.sentence, _fixes(promise)) for promise in PROMISES]
    return f"{NOTE}# Promises\n\n{INTRODUCTION}\n{table(('id', 'promise', 'fix'), rows)}\n{LIMITS}"


def _fixes(promise: Promise) -> str:
    texts = dict.fromkeys(filter(None, (promise.fix, promise.absent, promise.unplanned)))
    return " or ".join(map(code, texts)) or "the command that removes the thing"
