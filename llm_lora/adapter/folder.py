"""An adapter: LoRA weights with everything needed to use them as trained, in one folder.

adapter_model.safetensors  adapter_config.json   files that PEFT, vLLM and diffusers read
llm_lora.json              base digest, sampling, scores, versions; system prompt or trigger
answer.schema.json         the schema of answers, or of measurements, unchanged
chat_template.jinja        text: the template that rendered the training examples
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_lora import files
from llm_lora.adapter.manifest import Manifest
from llm_lora.errors import UserError
from llm_lora.files import Json
from llm_lora.recipe import show
from llm_lora.task import TASKS
from llm_lora.weights import safetensors_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "llm_lora.json"
SCHEMA = "answer.schema.json"
TEMPLATE = "chat_template.jinja"

_KEYS = {name: re.compile(task.tensors) for name, task in TASKS.items()}
"""Tensor names by task."""

MADE = {name: task.makes for name, task in TASKS.items()}
"""The output of a task's adapters, for messages and tables."""


class Trained(Protocol):
    """The base of an adapter."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


# Options of PEFT's configuration that make an adapter more than products added to the base.
_MORE_THAN_PRODUCTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# Initialisations that leave the base unchanged. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# first subtract something from its weights, which the original base still has.
_INITS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class Adapter:
    """A verified adapter folder."""

    path: Path
    digest: str
    rank: int
    alpha: float
    modules: tuple[str, ...]
    manifest: Manifest

    @property
    def task(self) -> str:
        """The task of the base: text or image."""
        return self.manifest.task

    @property
    def base_name(self) -> str:
        return self.manifest.base.name

    @property
    def base_digest(self) -> str:
        return self.manifest.base.digest

    @property
    def schema_path(self) -> Path | None:
        path = self.path / SCHEMA
        return path if path.is_file() else None


def digest(folder: Path) -> str:
    """Hex digest of the weights and of PEFT's configuration."""
    parts = (files.file_sha256(folder / WEIGHTS), files.file_sha256(folder / CONFIG))
    return files.sha256("\n".join(parts))


def read(folder: Path) -> Adapter:
    """Read and verify an adapter folder without executing or unpickling anything.

    Raises:
        UserError: a file is missing or damaged, weights and manifest do not match, or the tensors
            are not the LoRA pairs that the configuration declares.
    """
    if not folder.is_dir():
        raise UserError("no adapter folder here", where=str(folder), fix="check the path")
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(
            "the weights are pickled (adapter_model.bin), which may run code when loaded",
            where=str(folder),
            fix="save them as safetensors",
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError("missing", where=str(folder / WEIGHTS), fix="copy the whole adapter folder")
    tensors = safetensors_header(folder / WEIGHTS)
    config = _json(folder / CONFIG)
    manifest = Manifest.from_json(_json(folder / MANIFEST), folder / MANIFEST)
    pattern = _KEYS.get(manifest.task)
    if pattern is None:
        raise UserError(
            f"the adapter has the unknown task {manifest.task!r}",
            where=str(folder / MANIFEST),
            fix=f"known tasks are {', '.join(_KEYS)}; a newer llm-lora may know more",
        )
    rank = int(_number(config, "r", folder))
    modules = _modules(tensors, pattern, folder, rank)
    found = digest(folder)
    if manifest.digest != found:
        raise UserError(
            "the weights were changed after training: their digest differs from the manifest's",
            where=str(folder / MANIFEST),
            fix="copy the adapter folder again, or train again",
        )
    for name, wanted in (
        (SCHEMA, manifest.schema_digest),
        (TEMPLATE, manifest.chat_template_digest),
    ):
        path = folder / name
        if (files.sha256(files.read_bytes(path)) if path.is_file() else None) != wanted:
            raise UserError(
                "not the file that training used",
                where=str(path),
                fix="copy the adapter folder again, or train again",
            )
    return Adapter(
        path=folder,
        digest=found,
        rank=rank,
        alpha=_number(config, "lora_alpha", folder),
        modules=modules,
        manifest=manifest,
    )


def require_base(adapter: Adapter, base: Trained) -> None:
    """Refuse to use an adapter with a base that it was not trained on.

    Raises:
        UserError: the digests differ.
    """
    if adapter.base_digest != base.digest:
        raise UserError(
            f"this adapter was trained on {adapter.base_name} "
            f"({adapter.base_digest[:12]}), not on {base.name} ({base.digest[:12]})",
            where=str(adapter.path),
            fix="use the base it was trained on, or train again on this one",
        )


def more_than_products(config: Json) -> list[str]:
    """Keys of a PEFT configuration that make the adapter more than products added to the base.

    Source: `LoraConfig` and `LoraLayer` of PEFT 0.21.
    """
    found = [key for key in _MORE_THAN_PRODUCTS if config.get(key)]
    if config.get("peft_type") not in (None, "LORA"):
        found.append("peft_type")
    if config.get("bias") not in (None, "none"):
        found.append("bias")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _INITS:
        found.append("init_lora_weights")
    return found


def scale(adapter: Adapter) -> float:
    """The factor of a module's product of B and A when it is added to the weight.

    Raises:
        UserError: PEFT's configuration requires more than such products, so that adding them to
            the base would give a different model, or a separate scale per module.
    """
    config = _json(adapter.path / CONFIG)
    by_module = ("alpha_pattern", "rank_pattern", "fan_in_fan_out")
    asked = [*more_than_products(config), *(key for key in by_module if config.get(key))]
    if asked:
        raise UserError(
            f"{', '.join(f'{key}={config[key]!r}' for key in asked)}: "
            "only plain LoRA weights can be added to a base",
            where=str(adapter.path / CONFIG),
            fix="train again without it",
        )
    rank = math.sqrt(adapter.rank) if config.get("use_rslora") else adapter.rank
    return adapter.alpha / rank


def _json(path: Path) -> Json:
    if not path.is_file():
        raise UserError("missing", where=str(path), fix="copy the whole adapter folder")
    try:
        value = json.loads(files.read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", fix="restore the file"
        ) from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), fix="restore the file")
    return value


def _number(config: Json, key: str, folder: Path) -> float:
    """A number from PEFT's configuration; a whole one as an int, shown without a decimal point."""
    value: Any = config.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The negated comparison also refuses NaN.
    if not number or not abs(value) <= sys.float_info.max:
        raise UserError(
            f"{key} must be a number, not {show(value)}",
            where=str(folder / CONFIG),
            fix="copy the adapter folder again, or train again",
        )
    whole: float = int(value)
    return whole if whole == value else value


def _modules(
    tensors: dict[str, dict[str, Any]], pattern: re.Pattern[str], folder: Path, rank: int
) -> tuple[str, ...]:
    """Names of the adapted modules; each must have both halves, of the declared rank."""
    sides: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise UserError(
                f"unexpected tensor {key}",
                where=str(folder / WEIGHTS),
                fix="check that this is a LoRA adapter",
            )
        side, shape = match["side"], tensor["shape"]
        if len(shape) < 2 or shape[0 if side == "A" else 1] != rank or not rank:
            raise UserError(
                f"{key} has shape {shape}, but the rank is {rank}",
                where=str(folder / WEIGHTS),
                fix="weights and adapter_config.json seem to belong to different adapters: copy "
                "the adapter folder again",
            )
        sides.setdefault(match["module"], set()).add(side)
    halves = [module for module, found in sides.items() if len(found) == 1]
    if halves or not sides:
        raise UserError(
            f"half of the pair is missing for {', '.join(halves[:3])}" if halves else "no weights",
            where=str(folder / WEIGHTS),
            fix="copy the adapter folder again, or train again",
        )
    return tuple(sorted(sides))
