"""Trials on the workers of a Dask cluster: an executor for `fxprune.tune` (extra `fleet`).

Every worker offers as many "device" as it may run measurements at once, which is one:

    dask worker tcp://scheduler:8786 --nthreads 1 --resources device=1

A worker that dies is started again by its nanny, and its batch goes to another; a batch whose workers die again and
again is left out. Workers must be machines like the one that searches, because records carry its name.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, Protocol, TypeVar

from fxprune.errors import UnsupportedError

DEVICE = "device"
"""Resource of a worker, of which every trial takes one."""

_Result = TypeVar("_Result")


class Client(Protocol):
    """What is used of `distributed.Client`."""

    def get_executor(self, **options: object) -> Executor:
        """Return an executor that runs functions on the workers."""

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        """Describe so many workers; -1 = all."""


class DaskExecutor(Executor):
    """Runs trials on the workers of a cluster that offer a device, one at a time on each device."""

    def __init__(self, client: Client) -> None:
        """Look for the workers.

        Args:
            client: A connected `distributed.Client`; it stays the caller's to close.

        Raises:
            UnsupportedError: Dask is not installed, or no worker offers a device.
        """
        try:
            from distributed import KilledWorker
        except ImportError as error:
            raise UnsupportedError(
                "DaskExecutor needs Dask distributed, which is not installed. Run: pip install 'fxprune[fleet]'"
            ) from error
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not any(worker["resources"].get(DEVICE, 0) >= 1 for worker in workers.values()):
            raise UnsupportedError(
                f"None of the {len(workers)} workers offers a {DEVICE}, so no trial would ever begin. Start them with: "
                f"dask worker ADDRESS --nthreads 1 --resources {DEVICE}=1"
            )
        self._lost: type[Exception] = KilledWorker
        self._inner = client.get_executor(resources={DEVICE: 1}, pure=False)

    def submit(self, fn: Callable[..., _Result], /, *args: object, **kwargs: object) -> Future[_Result]:
        """Run a function on a worker; a worker that was lost for good is a `BrokenExecutor`.

        Args:
            fn: The function.
            args: Its arguments.
            kwargs: Its arguments by name.
        """
        inner, outer = self._inner.submit(fn, *args, **kwargs), Future[_Result]()
        outer.add_done_callback(lambda found: inner.cancel() if found.cancelled() else None)
        inner.add_done_callback(lambda found: self._hand_over(found, outer))
        return outer

    def _hand_over(self, inner: Future[_Result], outer: Future[_Result]) -> None:
        if not outer.set_running_or_notify_cancel():
            return
        error = BrokenExecutor("the cluster cancelled it") if inner.cancelled() else inner.exception()
        if error is None:
            outer.set_result(inner.result())
        else:
            outer.set_exception(BrokenExecutor(str(error)) if isinstance(error, self._lost) else error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more functions; the cluster goes on.

        Args:
            wait: Wait for those that run.
            cancel_futures: Give up those that wait.
        """
        self._inner.shutdown(wait=wait and not cancel_futures)
