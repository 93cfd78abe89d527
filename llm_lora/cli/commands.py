"""The commands of `llm-lora`; each reads its arguments, calls the library, prints the outcome."""

from __future__ import annotations

import click

from llm_lora import __version__
from llm_lora.cli import (
    health,
    labelling,
    measuring,
    merging,
    painting,
    publishing,
    recipes,
    results,
    schemas,
    serving,
    training,
    validating,
)


class _InOrder(click.Group):
    """Lists commands in the order in which they are added: the order of first use."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="llm-lora %(version)s")
def app() -> None:
    """Fine-tune and serve LoRA adapters: language models whose JSON answers always fit a schema,
    and Stable Diffusion styles learned from a folder of pictures.
    """


for command in (
    training.data,
    training.train,
    validating.validate,
    results.evaluate,
    results.report,
    results.chat,
    results.list_runs,
    health.doctor,
    labelling.label,
    schemas.schema,
    serving.serve,
    publishing.publish,
    publishing.promote,
    publishing.rollback,
    publishing.canary,
    publishing.retire,
    publishing.adapters,
    publishing.history,
    publishing.remove,
    merging.merge,
    merging.export,
    painting.generate,
    measuring.bench,
    recipes.recipe,
):
    app.add_command(command)
