"""Fan out, then join everything, then report every failure. Nothing is cleaned up under running workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from vcluster.errors import SeveralErrors, VclusterError
from vcluster.util.deadline import Cancelled, Deadline

T = TypeVar("T")
R = TypeVar("R")

WORKERS_MAX = 32


def each(items: Sequence[T], work: Callable[[T], R], *, deadline: Deadline, limit: int = WORKERS_MAX) -> list[R]:
    """The results of `work` for every item, in order, computed side by side, at most `limit` at a time.

    The first failure, and an interrupt of the user's, call the others off through `deadline`; all are waited for.
    Raises the failure, or SeveralErrors when there are more; one that merely obeyed the calling-off does not count.
    """
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(len(items), limit)) as pool:
        futures = [pool.submit(_guarded, work, item, deadline) for item in items]
        _join(futures, deadline)
    return _results(futures)


def outcomes(
    items: Sequence[T], work: Callable[[T], R], *, deadline: Deadline | None = None, limit: int = WORKERS_MAX
) -> list[R | VclusterError]:
    """What became of `work` for every item, in order: its result, or the error. Nobody is called off by another.

    An interrupt of the user's calls all off through `deadline`, if there is one; all are waited for.
    """
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(len(items), limit)) as pool:
        futures = [pool.submit(work, item) for item in items]
        _join(futures, deadline)
    found: list[R | VclusterError] = []
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, VclusterError):
            raise error
        found.append(error if error is not None else future.result())
    return found


def raise_all(errors: Sequence[VclusterError]) -> None:
    """Raise the errors, if there are any: one as it is, several together, the same one of several nodes once."""
    single = [one for error in errors for one in (error.errors if isinstance(error, SeveralErrors) else (error,))]
    different = list(dict.fromkeys(single))
    if len(different) > 1:
        raise SeveralErrors(different)
    for error in different:
        raise error


def _join(futures: Sequence[Future[R]], deadline: Deadline | None) -> None:
    try:
        wait(futures)
    except BaseException:
        if deadline:
            deadline.cancel()
        for future in futures:
            future.cancel()
        raise


def _guarded(work: Callable[[T], R], item: T, deadline: Deadline) -> R:
    try:
        return work(item)
    except BaseException:
        deadline.cancel()
        raise


def _results(futures: Sequence[Future[R]]) -> list[R]:
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if not isinstance(error, VclusterError):
            raise error
    genuine = [error for error in errors if isinstance(error, VclusterError) and not isinstance(error, Cancelled)]
    raise_all(genuine)
    for error in errors:
        raise error
    return [future.result() for future in futures]
