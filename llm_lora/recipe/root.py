"""The part that recipes of all tasks share: name, base, digest, paths, conversion to YAML."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from llm_lora.files import sha256
from llm_lora.recipe.scalars import Block, NotEmpty, Profile
from llm_lora.recipe.yaml import KeyPath, Settings
from llm_lora.task import TASKS

_PATHS = (
    ("data", "train"),
    ("data", "held_out"),
    ("data", "schema"),
    ("data", "captions"),
    ("data", "regularisation"),
    ("train", "start_from"),
)
"""Settings that hold a path or a list of paths."""

_MODELS = (("base",), ("judge", "embedder"), ("judge", "likeness"))
"""Settings that name a model, by path or otherwise."""

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


def _one_of_tasks(schema: dict[str, Any]) -> None:
    """List all tasks in a schema whose model allows only one."""
    schema.pop("const", None)
    schema["enum"] = list(TASKS)


OF_TASK = Field(
    description="What to train, text or image. text: a language model that answers prompts. "
    "image: a diffusion model that paints a style or a subject.",
    json_schema_extra=_one_of_tasks,
)
AppliedProfile = Annotated[
    Profile | None,
    Field(description="The applied profile; written by llm-lora, not by hand."),
]


class Contradiction(NamedTuple):
    """A setting that cannot stand beside others: what is wrong, and what to do."""

    setting: KeyPath
    what: str
    fix: str


class RecipeRoot(Block):
    """One resolved recipe, the input of every stage."""

    CALLED: ClassVar[str]
    """This kind of recipe in messages, such as "a text recipe"."""
    SYNONYMS: ClassVar[Mapping[str, str]] = _SYNONYMS
    """Names of these settings in other trainers; used for suggestions only."""

    task: Annotated[str, OF_TASK]
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        json_schema_extra={"patternErrorMessage": "made of lower-case letters, digits, - and _"},
        description="Name of runs and adapters; by default, the name of this file.",
    )
    base: NotEmpty = Field(
        description="The base model. tiny (embedded), a folder (starting with ./, ../, "
        "~/ or /, relative to this YAML file), or a hub id such as Qwen/Qwen3-4B-Instruct-2507.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of the base on the hub; only a commit never changes.",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Settings that contradict each other."""
        raise NotImplementedError

    def warnings(self) -> tuple[str, ...]:
        """Allowed settings that are seldom intended, a sentence each."""
        is_loose = self.base != "tiny" and not is_path(self.base) and self.revision is None
        checks = self._seldom_intended() | {
            f"base {self.base} has no revision, so the model on the hub may change": is_loose
        }
        return tuple(sentence for sentence, holds in checks.items() if holds)

    def _seldom_intended(self) -> dict[str, bool]:
        """The warnings that this kind of recipe may give, and whether each applies."""
        raise NotImplementedError

    def settings(self, folder: Path | None = None) -> Settings:
        """The recipe as plain data under the keys of the YAML file.

        Args:
            folder: paths below the working directory are written relative to this folder;
                without it, all paths are absolute.
        """
        return map_paths(
            self.model_dump(mode="json", by_alias=True), lambda path: written(path, folder)
        )

    def to_yaml(self, folder: Path | None = None) -> str:
        """YAML that `recipe.load` reads back to an equal recipe.

        Args:
            folder: the folder that the text will be saved in. Data below the working directory is
                then named relative to it, so that the project can be moved and no home directory
                is disclosed. Without it paths are absolute, so the text can be saved anywhere.
        """
        return yaml_text(self.settings(folder))

    def digest(self) -> str:
        """Identity of the recipe: equal settings give equal digests on any machine.

        Of paths only the file name counts, as the dataset's fingerprint identifies the content.
        """
        data = self.model_dump(mode="json", by_alias=True)
        return sha256(json.dumps(map_paths(data, lambda path: Path(path).name), sort_keys=True))


def yaml_text(settings: Settings) -> str:
    """Plain settings as YAML, in their given order."""
    # Imported on use: the import is slow, and most commands write no YAML.
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 2**20  # Folding a line at a double space would lose one of the two.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(settings, text)
    return text.getvalue()


def is_path(base: str) -> bool:
    """Whether a model name is a path; hub ids look like relative paths without ./."""
    return base.startswith(("./", "../", "~/", "/")) or base in (".", "..")


def map_paths(settings: Settings, change: Callable[[str], str]) -> Settings:
    """A copy of plain settings, complete or partial, with every path changed."""
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
    """A path relative to a folder, or absolute without one."""
    if folder is None or Path(path).is_absolute():
        return str(Path(path).absolute())
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("..") else f"./{relative}"
