"""Values of a lora-scripts recipe, read as ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lora.recipe.mistakes import show
from llm_lora.recipe.yaml import scalar

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
    """Why a value cannot be converted, and what to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


@dataclass(frozen=True)
class Read:
    """A value of ours; `more` are settings that come with it, `said` is put behind the note."""

    value: Any
    said: str = ""
    more: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[Any], Read]


def as_it_is(value: Any) -> Read:
    """The same value; whether it will do is checked with the recipe."""
    return Read(value)


def number(value: Any) -> Read:
    """A number, also where it was quoted: YAML 1.1 reads 2e-4 as text, so recipes quote numbers."""
    if isinstance(value, str) and isinstance(read := scalar(value.strip()), int | float):
        return Read(_whole(read), " (it stood there as text)")
    return Read(_whole(value))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def switch(value: Any) -> Read:
    """Truth, also in the words that YAML 1.1 took for it."""
    words = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
    return Read(words.get(value.lower(), value) if isinstance(value, str) else value)


def side(value: Any) -> Read:
    """The side of a square: 512, "512,512" or "512x512".

    Raises:
        Unusable: it is no square.
    """
    if isinstance(value, str):
        sides = [int(part) for part in re.findall(r"\d+", value)]
        if len(set(sides)) > 1:
            raise Unusable(
                f"{value} is no square",
                "write its shorter side; other shapes come by themselves, from the pictures",
            )
        return Read(sides[0] if sides else value)
    return Read(value)


def text_base(value: Any) -> Read:
    """A base for text, as `_base` reads it."""
    return _base(value, "Qwen/Qwen3-4B-Instruct-2507 or meta-llama/Llama-2-7b-chat-hf")


def image_base(value: Any) -> Read:
    """A base that paints, as `_base` reads it."""
    return _base(value, "a .safetensors file of it, or stable-diffusion-v1-5/stable-diffusion-v1-5")


def _base(value: Any, such_as: str) -> Read:
    """A base: lora-scripts writes paths without ./ too.

    Raises:
        Unusable: it is a model for llama.cpp, or pickled.
    """
    if not isinstance(value, str):
        return Read(value)
    if "ggml" in value.lower() or ".gguf" in value.lower():
        raise Unusable(
            f"{value} is a model for llama.cpp (GGML/GGUF), which cannot be trained",
            f"name the original model that it was made from, such as {such_as}",
        )
    if Path(value).suffix.lower() in _PICKLED:
        raise Unusable(f"{value} is pickled, and may run code on loading", f"name {such_as}")
    is_file = value.endswith(".safetensors") or Path(value).exists()
    bare = not value.startswith((".", "/", "~")) and value != "tiny"
    return Read(f"./{value}" if is_file and bare else value)


def texts(value: Any) -> Read:
    """The files of a folder of texts; those that are named so are held out.

    Raises:
        Unusable: there is no such folder, or no text in it.
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
            f"{value} holds no .jsonl, .json or .txt file to learn from",
            "put prompt/response pairs there, one JSON object a line",
        )
    return Read(train, more={"data.held_out": held_out} if held_out else {})


def schedule(value: Any) -> Read:
    """How the learning rate falls."""
    return Read(_SCHEDULES.get(value, value) if isinstance(value, str) else value)


def optimizer(value: Any) -> Read:
    """The optimizer, by its class's name too."""
    return Read(_OPTIMIZERS.get(value.lower(), value) if isinstance(value, str) else value)


def precision(value: Any) -> Read:
    """What is computed in; text is not trained in fp16, for which QLoRA takes bf16 or fp32."""
    if value is False:  # YAML 1.1 takes "no" for it.
        return Read("fp32")
    read = _PRECISIONS.get(value.lower(), value) if isinstance(value, str) else value
    if read == "fp16":
        return Read("auto", " (fp16 where the GPU has no bf16, fp32 without one)")
    return Read(read)


def targets(value: Any) -> Read:
    """Modules to adapt, as a list or with commas between them."""
    if isinstance(value, str):
        return Read([part.strip() for part in value.split(",") if part.strip()])
    return Read(value)


def name(value: Any) -> Read:
    """A name of runs."""
    if isinstance(value, str):
        return Read(re.sub(r"[^a-z0-9_-]+", "-", value.lower()).strip("-_")[:64] or value)
    return Read(value)


def checkpoint(value: Any) -> tuple[Path | None, Path | None]:
    """The run that a checkpoint belongs to, or else the weights that it holds.

    A run is gone on with where it is named itself, or its folder `checkpoints` or one in it; what
    else a run keeps (`adapter`, `steps/step-100`) are weights alone.

    Raises:
        Unusable: there is nothing, or nothing that can be gone on with.
    """
    if not isinstance(value, str):
        raise Unusable(f"must be a path, not {show(value)}", "name a checkpoint, or remove it")
    place = Path(value)
    if not place.exists():
        raise Unusable(f"no such checkpoint: {value}", "remove it to train anew, or check the path")
    if not place.is_dir():
        if place.suffix == ".safetensors":
            return None, place
    elif run := _run_of(place.absolute()):
        return run, None
    elif (place / _PEFT).is_file():
        return None, place  # The folder, for alpha stands in a file beside the weights.
    elif (place / _DIFFUSERS).is_file():
        return None, place / _DIFFUSERS
    raise Unusable(
        f"{value} is no checkpoint of llm-lora, and holds no LoRA weights as safetensors",
        "name the folder of an interrupted run, or a .safetensors file to go on from",
    )


def _run_of(place: Path) -> Path | None:
    """The run that a folder is, or is a checkpoint of."""
    for folder in (place, *place.parents):
        if (folder / "recipe.yaml").is_file() and (folder / "inputs.json").is_file():
            of_run = place == folder or place.is_relative_to(folder / "checkpoints")
            return folder if of_run else None
    return None
