"""The base, the frozen model that an adapter is trained on: lookup, checks and digest."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.errors import UserError

TINY = Path(__file__).parent / "assets" / "tiny_text"
"""The embedded base, named "tiny" in recipes."""

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
PIPELINE = "model_index.json"
"""The file that marks the folder of an image model in diffusers' layout."""

_INDEX = "model.safetensors.index.json"

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""The form of model names on the hub."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt"]
_LLAMA_CPP = "this is a model for llama.cpp (GGML/GGUF), which cannot be trained"
_LLAMA_CPP_FIX = "name the original model that it was made from, with safetensors weights"

# Reading 64 MB takes well under a second; for larger files, samples distinguish models.
_HASH_WHOLE = 64 * 2**20
_SAMPLES, _SAMPLE = 64, 64 * 2**10


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
        raise UserError(_LLAMA_CPP, where=base, fix=_LLAMA_CPP_FIX)
    if folder.is_file():
        raise UserError("this is a file", where=base, fix="name the folder of the model")
    if not HUB_ID.fullmatch(base):
        raise UserError(
            "no such folder", where=base, fix="check the path, or name a model as owner/name"
        )
    snapshot = fetch(base, revision, _FILES, local_only=not download)
    return _inspect(base, snapshot, commit(snapshot) or revision)


def commit(snapshot: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    return read_object(folder / CONFIG)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from one of a model's files.

    Raises:
        UserError: the file is missing, not UTF-8, or not a JSON object.
    """
    try:
        value = json.loads(files.read_text(path))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(path), fix="restore the file") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), fix="restore the file")
    return value


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


def context_length(config: dict[str, Any]) -> int | None:
    """The model's maximum context in tokens, or None if its config does not say."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        length = part.get("max_position_embeddings")
        if isinstance(length, int):
            return length
    return None


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
    config = read_config(folder)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "some method")
        raise UserError(
            f"this base is already quantised ({method}), so it cannot be quantised for training",
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
    length = context_length(config)
    if length is None:
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
        context_length=length,
        revision=revision,
        embedded=embedded,
    )


def _architecture(config: dict[str, Any], folder: Path) -> str:
    names = config.get("architectures") or ["unknown"]
    name = str(names[0])
    # Vision-language models carry a text model, which AutoModelForCausalLM loads.
    multimodal = name.endswith("ForConditionalGeneration") and "text_config" in config
    if name.endswith("ForCausalLM") or multimodal:
        return name
    raise UserError(
        f"{name} is not a causal language model",
        where=str(folder / CONFIG),
        fix="choose an instruct model that generates text",
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, each checked to be complete.

    Raises:
        UserError: there are none, one is missing, or one is truncated.
    """
    index = folder / _INDEX
    if index.is_file():
        shards = set(read_object(index).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(
                f"{len(missing)} of {len(shards)} weight files are missing, such as {missing[0]}",
                where=str(folder),
                fix="download or copy the model again",
            )
        weights = sorted(folder / shard for shard in shards)
    else:
        weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise _no_weights(folder)
    for path in weights:
        safetensors_header(path)
    return weights


def _no_weights(folder: Path) -> UserError:
    if list(folder.glob("*.gguf")) or list(folder.glob("*ggml*")):
        return UserError(_LLAMA_CPP, where=str(folder), fix=_LLAMA_CPP_FIX)
    if any(list(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
        return UserError(
            "only pickled weights (.bin), which may run code when loaded",
            where=str(folder),
            fix="choose a revision with safetensors, or convert them: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(folder)",
        )
    return UserError(
        "no safetensors weights", where=str(folder), fix="name a model with model.safetensors"
    )


def safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor names with dtype, shape and offsets, checked against the size of the file.

    Raises:
        UserError: the file is truncated or not a safetensors file.
    """
    return safetensors_parts(path)[0]


def safetensors_parts(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of `safetensors_header`, and the file's metadata.

    Format: 8 bytes little-endian header length, JSON header, data
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start.ljust(8, b"\xff"))
        header = file.read(length) if length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        metadata = tensors.pop("__metadata__", None) or {}
        # The format allows only strings as metadata.
        whole = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None
    for name, tensor in tensors.items():
        if not _described(tensor):
            raise _damaged(path, f": invalid dtype, shape or data_offsets for {name}")
    end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if not whole or 8 + length + end != size:
        raise _damaged(path)
    return tensors, metadata


def _described(tensor: Any) -> bool:
    """Whether a tensor's entry has the form that the format requires."""
    match tensor:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            return 0 <= begin <= end and all(type(one) is int and one >= 0 for one in shape)
    return False


def _damaged(path: Path, more: str = "") -> UserError:
    return UserError(
        f"damaged or incomplete safetensors file{more}",
        where=str(path),
        fix="download or copy it again",
    )


def _digest(folder: Path, weights: list[Path]) -> str:
    """Identity of config, tokenizer and weights."""
    total = hashlib.sha256()
    for path in (folder / CONFIG, folder / TOKENIZER, *weights):
        total.update(f"{path.name} {path.stat().st_size} {sampled_sha256(path)}\n".encode())
    return total.hexdigest()


def sampled_sha256(path: Path) -> str:
    """Hex digest of a weight file.

    A small file is read completely. Of a large one, the first 64 KiB (the header) and samples
    spread over it are read: any full fine-tuning changes nearly every weight, so samples
    distinguish two models of the same shape, in milliseconds instead of minutes. This does not
    protect against deliberate changes of single weights.
    """
    size = path.stat().st_size
    if size <= _HASH_WHOLE:
        return files.file_sha256(path)
    part = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            part.update(file.read(_SAMPLE))
    return part.hexdigest()


def fetch(
    name: str,
    revision: str | None,
    patterns: list[str],
    *,
    without: list[str] | None = None,
    local_only: bool,
) -> Path:
    """The snapshot of a model in the hub's cache, downloaded if necessary.

    Args:
        name, revision: as on the hub.
        patterns: files to download.
        without: files to leave out although they match one of the patterns.
        local_only: use the cache only.

    Raises:
        UserError: there is no such model, access is denied, or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=without,
                local_files_only=local_only,
            )
        )
    except errors.GatedRepoError:
        problem = "this model is gated: its owner must grant you access"
        fix = f"accept its terms on its page ({name}), then log in: hf auth login"
    except errors.RepositoryNotFoundError:
        problem = "no such folder here, and no such model on the hub (or it is private)"
        fix = "check the spelling; for a private model log in: hf auth login"
    except errors.RevisionNotFoundError:
        problem = f"this model has no revision {revision!r}"
        fix = "check base and revision in the recipe"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = "the hub cannot be reached, and this model is not in the local cache"
        fix = (
            "go online once (and unset HF_HUB_OFFLINE), name a local folder, "
            "or use the embedded base: --set base=tiny"
        )
    except errors.HFValidationError:
        problem, fix = "this is neither a folder nor the name of a hub model", "write owner/name"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        problem = f"the hub answered {status}"
        refused = status in (401, 403)
        fix = (
            "log in again: hf auth login" if refused else "try again later, or name a local folder"
        )
    except OSError as error:
        raise files.write_error(error, Path(name)) from None
    # Raised without its cause, because the library's messages quote request headers and addresses.
    raise UserError(problem, where=name, fix=fix) from None
