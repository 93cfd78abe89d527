"""Broken data files, each with its golden message.

`python tests/test_broken_data.py` writes the golden file anew: read its difference before trusting
it. Every file of tests/broken_data is the train file of a recipe with a good held-out file.
"""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import pytest
from support.model_folders import write_family
from support.places import TESTS

from llm_lora.base.chat import Chat
from llm_lora.data.text import dataset
from llm_lora.errors import UserError
from llm_lora.recipe.loading import Recipe
from llm_lora.schema.answer import AnswerSchema

HERE = TESTS
BROKEN = HERE / "broken_data"
GOLDEN = HERE / "golden" / "broken_data.txt"
HELD_OUT = BROKEN / "good_held_out.jsonl"
SCHEMA = """{"type": "object", "properties": {"colour": {"enum": ["red", "blue", "green"]},
"count": {"type": "integer"}}, "required": ["colour", "count"], "additionalProperties": false}"""


@functools.cache
def chat() -> Chat:
    return Chat.load(write_family(Path(tempfile.mkdtemp()), "qwen2.5"))


def recipe(train: Path, held_out: Path | float = HELD_OUT) -> Recipe:
    shares = (held_out,) if isinstance(held_out, Path) else held_out
    data = {"train": (train,), "held_out": shares, "validation": 0.3}
    settings = {"task": "text", "name": "broken", "base": "tiny", "data": data}
    return Recipe.model_validate(settings | {"train": {"max_tokens": 300}})


def describe(path: Path, held_out: Path | float = HELD_OUT) -> str:
    """What the user is told about a train file: the error, or the rows that were set aside."""
    schema = AnswerSchema.from_text(SCHEMA)
    try:
        made = dataset.prepare(recipe(path, held_out), schema, chat())
    except UserError as error:
        told = f"error: {error}"
    else:
        told = "\n".join(f"{row.where}: {row.reason}" for row in made.rejected)
    return told.replace(f"{BROKEN}/", "").replace(str(BROKEN), BROKEN.name)


def cases() -> dict[str, tuple[Path, Path | float]]:
    found: dict[str, tuple[Path, Path | float]] = {
        path.name: (path, HELD_OUT) for path in sorted(BROKEN.iterdir()) if path != HELD_OUT
    }
    good = BROKEN / "no_response.jsonl"
    return found | {
        "a missing file": (BROKEN / "nowhere.jsonl", HELD_OUT),
        "a folder": (BROKEN, HELD_OUT),
        "two missing files": (BROKEN / "nowhere.jsonl", BROKEN / "neither.jsonl"),
        "no usable held-out row": (good, BROKEN / "all_invalid.jsonl"),
        "a share that catches no row": (good, 0.001),
    }


def golden() -> dict[str, str]:
    sections = re.split(r"^### (.+)\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(sections[::2], (text.strip() for text in sections[1::2]), strict=True))


def test_golden_file_has_every_case() -> None:
    assert set(golden()) == set(cases())


@pytest.mark.parametrize("name", cases())
def test_message(name: str) -> None:
    assert describe(*cases()[name]) == golden()[name]


if __name__ == "__main__":
    GOLDEN.write_text(
        "\n\n".join(f"### {name}\n{describe(*case)}" for name, case in cases().items()) + "\n"
    )
