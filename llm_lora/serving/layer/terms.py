"""Terms of an adapter for requests that set none: schema, prompt, template, sampling.

An adapter for pictures has only sampling: steps, guidance, size and the like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_core import to_json

from llm_lora.adapter import Setting
from llm_lora.adapter import folder as adapter
from llm_lora.grammar import request_fields
from llm_lora.schema import AnswerSchema
from llm_lora.store import Version


@dataclass(frozen=True)
class Terms:
    """An adapter's terms; read once when it is loaded, used for every request.

    `constraint` is the JSON member that makes the server decode within the schema, ready to be
    appended to a request; `sampling` uses the server's names.
    """

    schema: AnswerSchema | None
    constraint: bytes
    system: str | None
    template: Mapping[str, object]
    sampling: Mapping[str, Setting]
    max_tokens: int | None

    @classmethod
    def read(cls, version: Version) -> Terms:
        """The terms of a version, from its manifest and its schema; reads a file.

        Raises:
            UserError: the schema cannot be used.
        """
        manifest = version.manifest
        path = version.folder / adapter.SCHEMA
        schema = AnswerSchema.load(path) if path.is_file() else None
        sampling = dict(manifest.sampling)
        max_tokens = sampling.pop("max_new_tokens", None)
        return cls(
            schema=schema,
            constraint=b"" if schema is None else _constraint(schema),
            system=manifest.system or None,
            template=manifest.chat_template_options,
            sampling={key: value for key, value in sampling.items() if value is not None},
            max_tokens=max_tokens if isinstance(max_tokens, int) else None,
        )


def _constraint(schema: AnswerSchema) -> bytes:
    return to_json(request_fields(schema))[1:-1]
