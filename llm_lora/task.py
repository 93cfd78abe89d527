"""Tasks: what adapters are trained for, and where the parts of each task are.

A new task is one more entry of `TASKS` and the modules that it names.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A task. Its parts are named `module` or `module:name`, because each is imported on use.

    Attributes:
        name: the recipe's `task`.
        makes: the output of its adapters, for messages and tables.
        tensors: pattern of the names of an adapter's tensors, with `module` and `side`.
        routes: routes of its server whose bodies name a model.
        of_base, of_task: members that only the manifests of its adapters have.
        recipe: the model of its recipes.
        steps: the module of its steps of the pipeline (`tasks.Steps`).
        engine: the module of its engine.
        preflight: the module that examines what will be served.
        asking: the class that answers requests to its server.
        report: the class of its reports.
        showing: the module of its terminal output (`cli.show.Showing`).
    """

    name: str
    makes: str
    tensors: str
    routes: tuple[str, ...]
    of_base: tuple[str, ...]
    of_task: tuple[str, ...]
    recipe: str
    steps: str
    engine: str
    preflight: str
    asking: str
    report: str
    showing: str


_SIDE = r"\.lora_(?P<side>A|B)\.weight"

TASKS = {
    task.name: task
    for task in (
        Task(
            name="text",
            makes="text",
            # As PEFT writes them.
            tensors=rf"base_model\.model\.(?P<module>.+){_SIDE}",
            routes=("/v1/chat/completions", "/v1/completions", "/tokenize"),
            of_base=("bits",),
            of_task=("chat_template_digest", "chat_template_options", "system"),
            recipe="llm_lora.recipe.text:Recipe",
            steps="llm_lora.tasks.text.task",
            engine="llm_lora.engines.text.engine",
            preflight="llm_lora.serving.launch.text",
            asking="llm_lora.serving.layer.text.asking:Asking",
            report="llm_lora.report.text:TextReport",
            showing="llm_lora.cli.show.text",
        ),
        Task(
            name="image",
            makes="pictures",
            # As diffusers writes them.
            tensors=rf"(?P<module>(unet|text_encoder(_2)?)\..+){_SIDE}",
            routes=("/v1/images/generations",),
            of_base=("prediction",),
            of_task=("trigger",),
            recipe="llm_lora.recipe.image:ImageRecipe",
            steps="llm_lora.tasks.image.task",
            engine="llm_lora.engines.image.engine",
            preflight="llm_lora.serving.launch.image",
            asking="llm_lora.serving.layer.image.asking:Painting",
            report="llm_lora.report.image:ImageReport",
            showing="llm_lora.cli.show.image",
        ),
    )
}
"""Every task by its name."""


def load(part: str) -> Any:
    """Import a part of a task.

    >>> load("llm_lora.task:load") is load
    True
    """
    module, _, name = part.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
