"""The layer's configuration: one JSON file, named by one environment variable."""

from __future__ import annotations

import os
import tempfile
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from llm_lora import files
from llm_lora.adapter.mapping import SERVER_RANKS
from llm_lora.errors import Problem, UserError
from llm_lora.serving.layer.exchange import OnInvalid

VARIABLE = "LLM_LORA_SERVING"
"""Environment variable that holds the path of the configuration."""

_CLOSED = ConfigDict(extra="forbid")
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=_CLOSED)
class Limits:
    """The load that one server accepts, and for how long."""

    max_body_bytes: _Count = 2 * 2**20
    max_concurrent: _Count = 256
    """Requests to a model that are answered at the same time."""
    max_waiting: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait for one of those places; further ones are refused with 429."""
    queue_wait_seconds: _Seconds = 10.0
    request_seconds: _Seconds = 600.0
    """From arrival to the last byte of the answer."""


@dataclass(frozen=True, config=_CLOSED)
class ServingConfig:
    """The layer's settings.

    API keys are never in here, only the paths of the files that hold them; they may also come
    from the environment (`keys.py`).
    """

    store: Path
    base_name: str
    """The name that the server gives the base."""
    base_path: Path
    base_digest: str
    task: str = "text"
    """The base's task: text or image."""
    prediction: str = "auto"
    """Pictures: the prediction type of the base's UNet, where its files do not state it."""
    resolution: Annotated[int, Field(ge=0)] = 0
    """Pictures: the resolution that the base was trained at (pixels a side)."""
    merged: bool = False
    """The server's model is itself a version, merged into its base; `base_name` is the name of
    that version, and no other one can be served."""
    max_resident: _Count = 4
    """Adapter versions that are loaded at once."""
    max_rank: _Count = SERVER_RANKS[-1]
    """The largest rank that the server was started for."""
    linger_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """How long a version that no alias points to stays loaded without a request."""
    on_invalid: OnInvalid = "flag"
    limits: Limits = field(default_factory=Limits)
    api_keys_file: Path | None = None
    admin_keys_file: Path | None = None
    access_log: Path | None = None
    """None: no access log."""
    log_contents: bool = False
    probe: bool = True
    """Compare each version's answer with the base's after loading it."""

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return _adapter.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "configuration") -> ServingConfig:
        """Read a configuration; `where` names it in messages.

        Raises:
            UserError: not JSON, or unknown settings or values of the wrong type (all are listed).
        """
        try:
            return _adapter.validate_json(text)
        except ValidationError as error:
            raise UserError(
                Problem(
                    f"{'.'.join(map(str, one['loc'])) or 'text'}: {one['msg']}",
                    where,
                    "start the server with `llm-lora serve`, which writes this file",
                )
                for one in error.errors()
            ) from None

    def write(self, path: Path) -> None:
        """Write the configuration for its owner alone, whole or not at all.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        temporary: str | None = None
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
            Path(temporary).replace(path)
            temporary = None
        except OSError as error:
            raise files.write_error(error, path) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    @classmethod
    def from_environment(cls) -> ServingConfig:
        """The configuration that `LLM_LORA_SERVING` names.

        Raises:
            UserError: the variable is not set, or its file cannot be used.
        """
        path = os.environ.get(VARIABLE)
        if not path:
            raise UserError(
                f"{VARIABLE} is not set, so the layer knows neither store nor base",
                fix="start the server with `llm-lora serve`",
            )
        return cls.from_json(files.read_text(Path(path)), path)


_adapter = TypeAdapter(ServingConfig)
