"""What recipes of every task have in common: name, base, digest, paths, the way to YAML."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from llm_lora.files import sha256
from llm_lora.recipe.scalars import Block, NotEmpty
from llm_lora.recipe.yaml import KeyPath

TASKS = ("text", "image")
"""What can be trained."""

_PATHS = (
    ("data", "train"),
    ("data", "held_out"),
    ("data", "schema"),
    ("data", "captions"),
    ("data", "regularisation"),
    ("train", "start_from"),
)
"""Settings that are paths, or lists of them."""

_MODELS = (("base",), ("judge", "embedder"), ("judge", "likeness"))
"""Settings that name a model: by a path, or in another way."""

_SYNONYMS = {
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_checkpointing": "train.checkpointing",
    "lora_r": "lora.rank",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "model": "base",
    "model_name_or_path": "base",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "per_device_train_batch_size": "train.batch_size",
    "r": "lora.rank",
    "target_modules": "lora.targets",
    "warmup_ratio": "train.warmup",
}


def one_of_tasks(schema: dict[str, Any]) -> None:
    """Tell of every task, where a recipe's own model knows but one."""
    del schema["const"]
    schema["enum"] = list(TASKS)


class RecipeRoot(Block):
    """One recipe, resolved: the value that every stage takes."""

    SYNONYMS: ClassVar[Mapping[str, str]] = _SYNONYMS
    """What other trainers call our settings, for suggestions only."""

    task: str = Field(
        description="What is trained. text: text answers to text prompts. image: pictures of a "
        "style or a subject to text prompts."
    )
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        json_schema_extra={"patternErrorMessage": "made of lower-case letters, digits, - and _"},
        description="Names runs and adapters; the file's own name where not given.",
    )
    base: NotEmpty = Field(
        description="The model to start from. tiny (embedded), a folder (starting with ./, ../, "
        "~/ or /, relative to this YAML file), or a hub id such as Qwen/Qwen3-4B-Instruct-2507.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of the base on the hub; a commit never changes.",
    )

    def contradictions(self) -> Iterator[tuple[KeyPath, str, str]]:
        """Settings that cannot hold together: (which to blame, what is wrong, what to do)."""
        raise NotImplementedError

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and seldom meant, one sentence each."""
        raise NotImplementedError

    def settings(self, folder: Path | None = None) -> dict[str, Any]:
        """The recipe as plain data under the keys of the YAML file.

        Args:
            folder: paths below the working directory are written relative to it; without one,
                all paths are written whole.
        """
        return map_paths(
            self.model_dump(mode="json", by_alias=True), lambda path: written(path, folder)
        )

    def to_yaml(self, folder: Path | None = None) -> str:
        """YAML that `recipe.load` reads back to an equal recipe.

        Args:
            folder: where the text will be kept. With it, data below the working directory is
                named relative to the folder, so that the whole project can move and no home
                directory is told to others; without it paths are whole, so the text can be
                kept anywhere.
        """
        return yaml_text(self.settings(folder))

    def digest(self) -> str:
        """Identity of the recipe: equal settings on any machine give equal digests.

        Paths count by file name only: where the data lies says nothing about it, and what it
        holds is the dataset's fingerprint.
        """
        data = self.model_dump(mode="json", by_alias=True)
        return sha256(json.dumps(map_paths(data, lambda path: Path(path).name), sort_keys=True))

    def _unpinned(self) -> dict[str, bool]:
        """The warning about a base of the hub that may change, and whether it holds."""
        return {
            f"base {self.base} has no revision; what the hub holds under that name may change": (
                self.base != "tiny" and not is_path(self.base) and self.revision is None
            )
        }


def yaml_text(settings: Mapping[str, Any]) -> str:
    """Plain settings as YAML, in their order."""
    # Imported on use, as in yaml_source.
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 2**20  # Folded lines would lose one of two spaces.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(settings, text)
    return text.getvalue()


def is_path(base: str) -> bool:
    """Whether a model is written as a folder: hub ids look like relative paths."""
    return base.startswith(("./", "../", "~/", "/")) or base in (".", "..")


def map_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a recipe's plain settings, whole or partial, with every path changed."""
    copy = dict(settings)
    for way in (*_PATHS, *_MODELS):
        block, key = copy, way[-1]
        if len(way) == 2:
            if not isinstance(copy.get(way[0]), Mapping):
                continue
            block = copy[way[0]] = dict(copy[way[0]])
        value = block.get(key)
        if isinstance(value, list):
            block[key] = [change(one) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str) and (way not in _MODELS or is_path(value)):
            block[key] = change(value)
    return copy


def written(path: str, folder: Path | None) -> str:
    """A path as it reads from a folder; whole, where there is none."""
    if folder is None or Path(path).is_absolute():
        return str(Path(path).absolute())
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("..") else f"./{relative}"
