"""The base, the frozen model that an adapter is trained on: lookup, checks and digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.base.hub import HUB_ID, commit, fetch
from llm_lora.errors import UserError
from llm_lora.files import ASSETS, read_object
from llm_lora.weights import LLAMA_CPP, LLAMA_CPP_FIX, sampled_sha256, weight_files

TINY = ASSETS / "tiny_text"
"""The embedded base, named "tiny" in recipes."""

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
PIPELINE = "model_index.json"
"""The file that marks the folder of an image model in diffusers' layout."""


_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Base:
    """A base that can be trained: a complete local folder.

    `digest` identifies weights, configuration and tokenizer; `context_length` is in tokens;
    `revision` is the hub's commit if the base came from there.
    """

    name: str
    path: Path
    digest: str
    architecture: str
    context_length: int
    revision: str | None
    embedded: bool


def resolve(base: str, revision: str | None = None, *, download: bool = True) -> Base:
    """Find a base and check that it can be trained and served.

    Args:
        base: "tiny" (embedded), a folder, or the name of a model on the hub ("owner/name").
        revision: branch, tag or commit on the hub; None means the main branch.
        download: whether the model may be downloaded; otherwise it must be in the local cache.

    Raises:
        UserError: it is not available (offline, wrong name, no access), or it is unsuitable: no
            safetensors, quantised, no tokenizer, no chat template, not a causal language model.
    """
    if base == "tiny":
        return _inspect("tiny", TINY, None, embedded=True)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return _inspect(base, folder.resolve(), None)
    if ".gguf" in base.lower() or "ggml" in base.lower():
        raise UserError(LLAMA_CPP, where=base, fix=LLAMA_CPP_FIX)
    if folder.is_file():
        raise UserError("this is a file", where=base, fix="name the folder of the model")
    if not HUB_ID.fullmatch(base):
        raise UserError(
            "no such folder", where=base, fix="check the path, or name a model as owner/name"
        )
    snapshot = fetch(base, revision, _FILES, local_only=not download)
    return _inspect(base, snapshot, commit(snapshot) or revision)


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    return read_object(folder / CONFIG)


def chat_template(folder: Path) -> tuple[str, Path]:
    """A model's chat template and the file it is in; a separate template file takes precedence.

    Raises:
        UserError: the model has none.
    """
    path = folder / TEMPLATE
    if path.is_file():
        return files.read_text(path), path
    path = folder / TOKENIZER_CONFIG
    template = read_object(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if isinstance(template, str):
        return template, path
    raise UserError(
        "no chat template: this seems to be a model without instruction tuning",
        where=str(folder),
        fix=f"choose its instruct (or chat) version, or add {TEMPLATE}",
    )


@dataclass(frozen=True)
class ModelConfig:
    """What decides whether a language model can be trained, from its config.json.

    `context_length` is the maximum context in tokens, `eos_token_id` the end token or tokens;
    either is None if the file does not say. `quantised` is the method, None if it is not.
    """

    architecture: str
    context_length: int | None
    eos_token_id: object
    quantised: str | None
    multimodal: bool

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """The config of a model.

        Raises:
            UserError: it is missing or not a JSON object.
        """
        config = read_config(folder)
        text = config.get("text_config")
        lengths = (
            part.get("max_position_embeddings")
            for part in (config, text if isinstance(text, dict) else {})
        )
        packed = config.get("quantization_config")
        return cls(
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            context_length=next((length for length in lengths if isinstance(length, int)), None),
            eos_token_id=config.get("eos_token_id"),
            quantised=str(packed.get("quant_method", "some method"))
            if isinstance(packed, dict)
            else None,
            multimodal="text_config" in config,
        )


def _inspect(name: str, folder: Path, revision: str | None, *, embedded: bool = False) -> Base:
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "this is an adapter, not a base", where=name, fix="name the base it was trained on"
        )
    if (folder / PIPELINE).is_file():
        raise UserError(
            "this is an image model", where=name, fix="set task: image, or name a text model"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(
            "no config.json: this is not a model folder",
            where=str(folder),
            fix="name the folder with config.json and model.safetensors",
        )
    config = ModelConfig.read(folder)
    if config.quantised is not None:
        raise UserError(
            f"this base is already quantised ({config.quantised}), "
            "so it cannot be quantised for training",
            where=name,
            fix="name the unquantised original",
        )
    weights = weight_files(folder)
    if not (folder / TOKENIZER).is_file():
        raise UserError(
            "no tokenizer.json",
            where=str(folder),
            fix="create it: AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        )
    chat_template(folder)
    if config.context_length is None:
        raise UserError(
            "max_position_embeddings is missing",
            where=str(folder / CONFIG),
            fix="add the model's context length in tokens",
        )
    return Base(
        name=name,
        path=folder,
        digest=_digest(folder, weights),
        architecture=_architecture(config, folder),
        context_length=config.context_length,
        revision=revision,
        embedded=embedded,
    )


def _architecture(config: ModelConfig, folder: Path) -> str:
    name = config.architecture
    # Vision-language models carry a text model, which AutoModelForCausalLM loads.
    multimodal = name.endswith("ForConditionalGeneration") and config.multimodal
    if name.endswith("ForCausalLM") or multimodal:
        return name
    raise UserError(
        f"{name} is not a causal language model",
        where=str(folder / CONFIG),
        fix="choose an instruct model that generates text",
    )


def _digest(folder: Path, weights: list[Path]) -> str:
    """Identity of config, tokenizer and weights."""
    total = hashlib.sha256()
    for path in (folder / CONFIG, folder / TOKENIZER, *weights):
        total.update(f"{path.name} {path.stat().st_size} {sampled_sha256(path)}\n".encode())
    return total.hexdigest()
