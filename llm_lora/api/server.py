"""Serving from Python: `llm-lora serve` for the length of a `with` statement."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType

from llm_lora import machine
from llm_lora.errors import UserError
from llm_lora.serving import Readiness, sources
from llm_lora.serving.launch import AnyPlan, Line, Wanted, examining, launching


def serve(
    source: str | PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    base: str | None = None,
    context: int | None = None,
    max_adapters: int = Wanted.max_adapters,
    api_keys: str | PathLike[str] | None = None,
    admin_keys: str | PathLike[str] | None = None,
) -> Server:
    """Serve the adapter of a run, or the live adapters of a store; use it in a `with` statement.

    Args:
        source: a run, an adapter folder, or a store.
        host: the address to listen on.
        port: the port to listen on; None: a free one.
        base: the base model; None: the one that the adapters were trained on.
        context: tokens of prompt and answer together; None: 8192, or the base's limit.
        max_adapters: versions kept loaded at once.
        api_keys: the file of the clients' keys, one per line.
        admin_keys: the file of the keys for admin calls, one per line.

    Raises:
        UserError: all that would keep the server from starting or from answering correctly.
    """
    path = Path(source)
    is_store = not sources.is_run_or_adapter(path)
    wanted = Wanted(
        sources=() if is_store else (path,),
        store=path if is_store else None,
        base=base,
        host=host,
        port=machine.free_port() if port is None else port,
        max_adapters=max_adapters,
        context=context,
        api_keys=None if api_keys is None else Path(api_keys),
        admin_keys=None if admin_keys is None else Path(admin_keys),
    )
    return Server(examining.examine(wanted, machine.detect()))


class Server:
    """A server that runs within its `with` statement, and never outlives this process."""

    def __init__(self, plan: AnyPlan) -> None:
        """Start nothing yet."""
        self._plan = plan
        self._stop = launching.Stop()
        self._watch = _Watch()
        self._thread = threading.Thread(target=self._run, name="llm-lora serve", daemon=True)
        self._error: UserError | None = None

    @property
    def url(self) -> str:
        """Its address, such as http://127.0.0.1:8000; the OpenAI API is below /v1."""
        return self._plan.url

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that requests may give as their model."""
        return tuple(one.name for one in self._plan.served)

    @property
    def log(self) -> Path | None:
        """The file with the server's output; None before it was started."""
        return self._watch.log

    def __enter__(self) -> Server:
        """Start it and wait until it answers requests.

        Raises:
            UserError: it did not start; with the last lines of its log.
        """
        self._thread.start()
        try:
            self._watch.settled.wait()
        except BaseException:
            self._end()
            raise
        if self._error is not None:
            self._end()
            raise self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the running requests and stop it.

        Raises:
            UserError: it had died too often meanwhile; unless another error is on its way.
        """
        self._end()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            launching.run(self._plan, self._watch, self._stop)
        except UserError as error:
            self._error = error
        finally:
            self._watch.settled.set()

    def _end(self) -> None:
        self._stop.ask()
        self._thread.join()


class _Watch:
    """Notes when the server is ready; implements `launching.Watcher`."""

    def __init__(self) -> None:
        self.settled = threading.Event()
        self.log: Path | None = None

    def starting(self, log: Path) -> None:
        self.log = log

    def waiting(self, seconds: float, doing: str) -> None:
        pass

    def ready(self, seconds: float, state: Readiness) -> None:
        self.settled.set()

    def alarm(self, line: Line) -> None:
        pass

    def died(self, code: int, reasons: Sequence[str], again_in: float | None) -> None:
        pass

    def ending(self) -> None:
        pass
