"""The console that commands print on."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
