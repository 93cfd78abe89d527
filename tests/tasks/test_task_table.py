"""The table of tasks: every part that it names exists, and the table is the only list of tasks."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.places import PACKAGE

from llm_lora.task import TASKS, Task, load


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_part_exists(task: Task) -> None:
    assert load(task.recipe).model_fields["task"].annotation.__args__ == (task.name,)
    assert load(task.report).__name__.endswith("Report")
    for part in (task.steps, task.engine, task.preflight, task.asking, task.showing):
        module, _, name = part.partition(":")
        found = find_spec(module)  # Engines take seconds to import.
        assert found is not None and found.origin is not None, part
        if name:
            body = ast.parse(Path(found.origin).read_text()).body
            assert name in {one.name for one in body if isinstance(one, ast.ClassDef)}, part


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_pattern_of_tensors_names_module_and_side(task: Task) -> None:
    assert set(re.compile(task.tensors).groupindex) >= {"module", "side"}


def test_few_other_places_list_the_tasks() -> None:
    """Each of them has to be changed for a new task: a longer list makes one harder to add."""
    listed = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if '"text":' in (source := path.read_text()) and '"image":' in source
    }
    assert listed <= {
        "adapter/base.py",
        "adapter/mapping/text.py",
        "recipe/lora_scripts/reading.py",
    }
