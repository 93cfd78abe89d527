"""What the layer is told by whoever launches the server: one JSON file, named by one variable."""

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
    """What one server takes on at once, and for how long."""

    max_body_bytes: _Count = 2 * 2**20
    max_concurrent: _Count = 256
    """Requests to a model that are answered at the same time."""
    max_waiting: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait for one of those places; the next one is told to come back."""
    queue_wait_seconds: _Seconds = 10.0
    request_seconds: _Seconds = 600.0
    """From arrival to the last byte of the answer."""


@dataclass(frozen=True, config=_CLOSED)
class ServingConfig:
    """The layer's settings.

    Keys are named by the file that holds them, or come from the environment (`keys.py`); they
    never stand here.
    """

    store: Path
    base_name: str
    """The name that the server gives the base."""
    base_path: Path
    base_digest: str
    task: str = "text"
    """What the base does: text or image."""
    prediction: str = "auto"
    """Pictures: what the base's UNet predicts, where it does not say so itself."""
    resolution: Annotated[int, Field(ge=0)] = 0
    """Pictures: side in pixels of the squares that the base was trained at."""
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
            UserError: not JSON, an unknown setting, or a value of the wrong kind; each one.
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
            UserError: the disk is full or the folder may not be written.
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
