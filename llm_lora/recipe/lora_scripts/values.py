"""Readers that convert the values of a lora-scripts recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora.recipe.mistakes import show
from llm_lora.recipe.yaml import Settings, scalar

_TEXTS = (".jsonl", ".json", ".txt")
_HELD_OUT = re.compile(r"(held[_-]?out|test|eval|val|validation)\b", re.IGNORECASE)
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_PEFT, _DIFFUSERS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
_SCHEDULES = {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine"}
_OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit",
    "pagedadamw8bit": "paged-adamw-8bit",
    "prodigy": "prodigy",
}
_PRECISIONS = {"no": "fp32", "fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16",
               "fp16": "fp16", "float16": "fp16"}  # fmt: skip


class Unusable(Exception):
    """Raised for a value that cannot be converted; says why, and what to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


@dataclass(frozen=True)
class Read:
    """A converted value; `said` is appended to the note, `more` holds additional settings."""

    value: Any
    said: str = ""
    more: Settings = field(default_factory=dict)


Reader = Callable[[Any], Read]


def as_it_is(value: Any) -> Read:
    """The value unchanged; the recipe checks it."""
    return Read(value)


def number(value: Any) -> Read:
    """A number, even if quoted: YAML 1.1 reads 2e-4 as text, so recipes quote numbers."""
    if isinstance(value, str) and isinstance(read := scalar(value.strip()), int | float):
        return Read(_whole(read), " (was text)")
    return Read(_whole(value))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def switch(value: Any) -> Read:
    """A truth value, also in the words that YAML 1.1 accepted."""
    words = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
    return Read(words.get(value.lower(), value) if isinstance(value, str) else value)


def side(value: Any) -> Read:
    """The side of a square: 512, "512,512" or "512x512".

    Raises:
        Unusable: it is not a square.
    """
    if isinstance(value, str):
        sides = [int(part) for part in re.findall(r"\d+", value)]
        if len(set(sides)) > 1:
            raise Unusable(
                f"{value} is not a square",
                "write the shorter side; other aspect ratios are taken from the pictures",
            )
        return Read(sides[0] if sides else value)
    return Read(value)


def text_base(value: Any) -> Read:
    """A text base, as `_base` reads it."""
    return _base(value, "Qwen/Qwen3-4B-Instruct-2507 or meta-llama/Llama-2-7b-chat-hf")


def image_base(value: Any) -> Read:
    """An image base, as `_base` reads it."""
    return _base(value, "a .safetensors file of it, or stable-diffusion-v1-5/stable-diffusion-v1-5")


def _base(value: Any, such_as: str) -> Read:
    """A base; lora-scripts also accepts paths without ./.

    Raises:
        Unusable: it is a llama.cpp model, or a pickle.
    """
    if not isinstance(value, str):
        return Read(value)
    if "ggml" in value.lower() or ".gguf" in value.lower():
        raise Unusable(
            f"{value} is a llama.cpp model (GGML/GGUF), which cannot be trained",
            f"name the original model that it was made from, such as {such_as}",
        )
    if Path(value).suffix.lower() in _PICKLED:
        raise Unusable(f"{value} is a pickle, which may run code when loaded", f"name {such_as}")
    is_file = value.endswith(".safetensors") or Path(value).exists()
    bare = not value.startswith((".", "/", "~")) and value != "tiny"
    return Read(f"./{value}" if is_file and bare else value)


def texts(value: Any) -> Read:
    """The text files of a folder; those whose name says so (test, eval, …) are held out.

    Raises:
        Unusable: the folder does not exist or has no text file.
    """
    if not isinstance(value, str) or Path(value).is_file():
        return Read(value)
    folder = Path(value)
    if not folder.is_dir():
        raise Unusable(
            f"no such folder: {value}",
            "paths are relative to the working directory, as in lora-scripts",
        )
    found = sorted(str(one) for one in folder.iterdir() if one.suffix.lower() in _TEXTS)
    held_out = [one for one in found if _HELD_OUT.match(Path(one).stem)]
    train = [one for one in found if one not in held_out]
    if not train:
        raise Unusable(
            f"{value} has no .jsonl, .json or .txt file to train on",
            "put prompt/response pairs there, one JSON object per line",
        )
    return Read(train, more={"data.held_out": held_out} if held_out else {})


def schedule(value: Any) -> Read:
    """The learning rate schedule."""
    return Read(_SCHEDULES.get(value, value) if isinstance(value, str) else value)


def optimizer(value: Any) -> Read:
    """The optimizer, also by its class name."""
    return Read(_OPTIMIZERS.get(value.lower(), value) if isinstance(value, str) else value)


def precision(value: Any) -> Read:
    """The compute precision; fp16 becomes auto, as text is trained in bf16 or fp32 only."""
    if value is False:  # YAML 1.1 reads "no" as false.
        return Read("fp32")
    read = _PRECISIONS.get(value.lower(), value) if isinstance(value, str) else value
    if read == "fp16":
        return Read("auto", " (fp16 where the GPU has no bf16, fp32 without one)")
    return Read(read)


def targets(value: Any) -> Read:
    """Modules to adapt, as a list or comma-separated."""
    if isinstance(value, str):
        return Read([part.strip() for part in value.split(",") if part.strip()])
    return Read(value)


def name(value: Any) -> Read:
    """A name for runs."""
    if isinstance(value, str):
        return Read(re.sub(r"[^a-z0-9_-]+", "-", value.lower()).strip("-_")[:64] or value)
    return Read(value)


def checkpoint(value: Any) -> tuple[Path | None, Path | None]:
    """The run that a checkpoint belongs to, or else its weights.

    A path to a run, its folder `checkpoints` or a folder in that resumes the run. The other folders
    of a run (`adapter`, `steps/step-100`) hold weights only.

    Raises:
        Unusable: the path does not exist, or training cannot continue from it.
    """
    if not isinstance(value, str):
        raise Unusable(f"must be a path, not {show(value)}", "name a checkpoint, or remove it")
    place = Path(value)
    if not place.exists():
        raise Unusable(
            f"no such checkpoint: {value}", "check the path, or remove it to start a new training"
        )
    if not place.is_dir():
        if place.suffix == ".safetensors":
            return None, place
    elif run := _run_of(place.absolute()):
        return run, None
    elif (place / _PEFT).is_file():
        return None, place  # The folder, because alpha is in a file beside the weights.
    elif (place / _DIFFUSERS).is_file():
        return None, place / _DIFFUSERS
    raise Unusable(
        f"{value} is not an llm-lora checkpoint and has no LoRA weights in safetensors format",
        "name the folder of an interrupted run, or a .safetensors file to start from",
    )


def _run_of(place: Path) -> Path | None:
    """The run that a folder is or belongs to as a checkpoint."""
    for folder in (place, *place.parents):
        if (folder / "recipe.yaml").is_file() and (folder / "inputs.json").is_file():
            of_run = place == folder or place.is_relative_to(folder / "checkpoints")
            return folder if of_run else None
    return None
