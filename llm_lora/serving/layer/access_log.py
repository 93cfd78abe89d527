"""The access log: one JSON line per request, with messages only where that is asked for."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from llm_lora.files import write_error
from llm_lora.serving.layer.exchange import Exchange

NAME_LIMIT = 200
"""Most characters of a model name to log; it is the client that writes it."""

logger = logging.getLogger(__name__)


class _File(WatchedFileHandler):
    """A file handler that follows log rotation; a full disk loses lines, never answers."""

    _failing = False

    def _open(self) -> TextIOWrapper:
        # Also called after a rotation. Only the owner may read a new file: it may hold what people
        # asked.
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return TextIOWrapper(os.fdopen(handle, "ab"), self.encoding, self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failing:
            self._failing = True
            logger.exception("cannot write the access log %s; lines are lost", self.baseFilename)


class AccessLog:
    """Appends to `path`; None logs nothing. Keys and headers are never written.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path | None, *, contents: bool = False) -> None:
        self._contents = contents
        self._log: logging.Logger | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _File(path, encoding="utf-8")
        except OSError as error:
            raise write_error(error, path) from error
        # Outside the tree of loggers, so that no configuration of the server's reaches it.
        self._log = logging.Logger("access", logging.INFO)
        self._log.addHandler(file)

    def write(self, exchange: Exchange, body: bytes = b"") -> None:
        """Log a request to a model; `body` is what the client sent, logged with the contents."""
        if self._log is None:
            return
        version = exchange.version
        row: dict[str, Any] = {
            "id": exchange.id,
            "route": exchange.route,
            "status": exchange.status,
            "asked": exchange.asked[:NAME_LIMIT],
            "adapter": version.name if version else None,
            "version": version.number if version else None,
            "stream": exchange.stream,
            "outcome": exchange.outcome,
            "finish": exchange.finish_reason,
            "prompt_tokens": exchange.prompt_tokens,
            "answer_tokens": exchange.answer_tokens,
            "seconds": round(time.monotonic() - exchange.started, 4),
        }
        if exchange.first_token is not None:
            row["first_token_seconds"] = round(exchange.first_token - exchange.started, 4)
        if exchange.retried:
            row["retried"] = True
        if exchange.verdict is not None and exchange.verdict.reasons:
            # Messages quote the answer; field and keyword do not.
            found = {
                f"{one.field}: {one.keyword}" if one.field else one.keyword
                for one in exchange.verdict.reasons
            }
            row["reasons"] = sorted(found)
        if self._contents:
            row["request"] = body.decode(errors="replace")
            row["answers"] = list(exchange.answers)
        self._line(row)

    def refused(self, identity: str, route: str, status: int) -> None:
        """Log a request that reached no model."""
        if self._log is not None:
            self._line({"id": identity, "route": route, "status": status, "outcome": "refused"})

    def _line(self, row: dict[str, Any]) -> None:
        assert self._log is not None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._log.info("%s", json.dumps({"time": now, **row}))
