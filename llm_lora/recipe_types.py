"""A whole recipe: closed, frozen. What a YAML file may say is exactly what stands here and in
`recipe_blocks`; `recipe.load` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llm_lora.files import sha256
from llm_lora.recipe_blocks import (
    CheckRecipe,
    DataRecipe,
    GenerateRecipe,
    LoraRecipe,
    PreferRecipe,
    TrainRecipe,
)
from llm_lora.recipe_scalars import PROFILES, Block, NotEmpty, Profile

__all__ = ["PROFILES", "Recipe", "is_path", "map_paths"]


class Recipe(Block):
    """One recipe, resolved: the value that every stage takes."""

    task: Literal["text"] = Field(
        description="What is trained. text: text answers to text prompts."
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
    data: DataRecipe = Field(description="What to learn from, and what to judge by.")
    lora: LoraRecipe = Field(default_factory=LoraRecipe, description="The adapter.")
    train: TrainRecipe = Field(default_factory=TrainRecipe, description="How to learn.")
    prefer: PreferRecipe = Field(
        default_factory=PreferRecipe,
        description="How to learn from judged answers of its own, where train.method is dpo or "
        "grpo.",
    )
    generate: GenerateRecipe = Field(
        default_factory=GenerateRecipe,
        description="How to answer; these defaults travel with the adapter.",
    )
    check: CheckRecipe = Field(
        default_factory=CheckRecipe,
        description="Gates on the held-out report; an adapter that misses one has not passed.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Handed to TRL's SFTConfig as it is, and checked there."
    )
    profile: Profile | None = Field(
        default=None, description="The profile that was applied; written by llm-lora, not by hand."
    )

    def settings(self, folder: Path | None = None) -> dict[str, Any]:
        """The recipe as plain data under the keys of the YAML file.

        Args:
            folder: paths below the working directory are written relative to it; without one,
                all paths are written whole.
        """
        return map_paths(
            self.model_dump(mode="json", by_alias=True), lambda path: _written(path, folder)
        )

    def to_yaml(self, folder: Path | None = None) -> str:
        """YAML that `recipe.load` reads back to an equal recipe.

        Args:
            folder: where the text will be kept. With it, data below the working directory is
                named relative to the folder, so that the whole project can move and no home
                directory is told to others; without it paths are whole, so the text can be
                kept anywhere.
        """
        # Imported on use, as in yaml_source.
        from io import StringIO

        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.width = 2**20  # Folded lines would lose one of two spaces.
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        text = StringIO()
        yaml.dump(self.settings(folder), text)
        return text.getvalue()

    def digest(self) -> str:
        """Identity of the recipe: equal settings on any machine give equal digests.

        Paths count by file name only: where the data lies says nothing about it, and what it
        holds is the dataset's fingerprint.
        """
        data = self.model_dump(mode="json", by_alias=True)
        return sha256(json.dumps(map_paths(data, lambda path: Path(path).name), sort_keys=True))

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and seldom meant, one sentence each."""
        lora, train, generate = self.lora, self.train, self.generate
        checks = {
            f"lora.alpha / lora.rank is {lora.alpha / lora.rank:g}; from 0.5 to 4 is usual": (
                not 0.5 <= lora.alpha / lora.rank <= 4
            ),
            f"train.learning_rate {train.learning_rate:g} is high for {self.base}; "
            "2e-4 is the usual start": self.base != "tiny" and train.learning_rate > 1e-3,
            "train.evaluate_every 1 measures after every step; 1.0 is once an epoch": (
                train.evaluate_every == 1 and isinstance(train.evaluate_every, int)
            ),
            "train.batching is packed, but train.batch_size 1 leaves nothing to pack": (
                train.batching == "packed" and train.batch_size == 1
            ),
            "prefer has no effect while train.method is sft": (
                train.method == "sft" and self.prefer != PreferRecipe()
            ),
            "generate.top_p has no effect while generate.temperature is 0": (
                generate.temperature == 0 and generate.top_p < 1
            ),
            f"generate.max_new_tokens {generate.max_new_tokens} is more than the longest example "
            f"trained on, train.max_tokens {train.max_tokens}": (
                generate.max_new_tokens is not None and generate.max_new_tokens > train.max_tokens
            ),
            f"base {self.base} has no revision; what the hub holds under that name may change": (
                self.base != "tiny" and not is_path(self.base) and self.revision is None
            ),
        }
        return tuple(sentence for sentence, holds in checks.items() if holds)


def is_path(base: str) -> bool:
    """Whether `base` is written as a folder: hub ids look like relative paths."""
    return base.startswith(("./", "../", "~/", "/")) or base in (".", "..")


def map_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a recipe's plain settings, whole or partial, with every path changed."""
    copy = dict(settings)
    if isinstance(base := copy.get("base"), str) and is_path(base):
        copy["base"] = change(base)
    if isinstance(data := copy.get("data"), Mapping):
        block = dict(data)
        for key in block.keys() & {"train", "held_out", "schema"}:
            value = block[key]
            if isinstance(value, str):
                block[key] = change(value)
            elif isinstance(value, list):
                block[key] = [change(one) if isinstance(one, str) else one for one in value]
        copy["data"] = block
    return copy


def _written(path: str, folder: Path | None) -> str:
    if folder is None or Path(path).is_absolute():
        return str(Path(path).absolute())
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("..") else f"./{relative}"
