"""Run work in parallel, wait for all of it, then report every failure. No cleanup starts while a worker runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from vcluster.errors import ConnectionLostError, SeveralErrors, VclusterError
from vcluster.util.deadline import Cancelled, Deadline

T = TypeVar("T")
R = TypeVar("R")

WORKERS_MAX = 32


def each(items: Sequence[T], work: Callable[[T], R], *, deadline: Deadline, limit: int = WORKERS_MAX) -> list[R]:
    """The results of `work` for every item, in order. Runs in parallel, at most `limit` at a time.

    The first failure, or an interrupt by the user, cancels the other workers through `deadline`; all are joined. Raises
    the failure, or SeveralErrors for more than one. Cancelled workers do not count as failures.
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
    """The result or the error of `work` for every item, in order. A failure does not cancel the other workers.

    An interrupt by the user cancels all through `deadline`, if one is given; all are joined.
    """
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(len(items), limit)) as pool:
        futures = [pool.submit(work, item) for item in items]
        _join(futures, deadline)
    results: list[R | VclusterError] = []
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, VclusterError):
            raise error
        results.append(error if error is not None else future.result())
    return results


def raise_all(errors: Sequence[VclusterError]) -> None:
    """Raise the errors, if there are any. Several become SeveralErrors.

    The same error of several nodes counts once. Of lost connections to one server or node, the first error counts.
    """
    if error := joined(errors):
        raise error


def joined(errors: Sequence[VclusterError]) -> VclusterError | None:
    """The errors as one; None if there are none."""
    flat = [part for error in errors for part in (error.errors if isinstance(error, SeveralErrors) else (error,))]
    distinct: dict[VclusterError | str, VclusterError] = {}
    for error in flat:
        distinct.setdefault(error.peer if isinstance(error, ConnectionLostError) else error, error)
    return SeveralErrors([*distinct.values()]) if len(distinct) > 1 else next(iter(distinct.values()), None)


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
