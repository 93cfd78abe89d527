"""Pretraining checkpoints, as safetensors: weights, optimizer state, some figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def write(
    path: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    facts: Mapping[str, Any],
    average: Sequence[Tensor] = (),
) -> None:
    """Write a checkpoint atomically: a kill leaves either the previous one or this one.

    Args:
        facts: figures needed to continue, such as the step; any JSON values.
        average: a moving average of the weights, if there is one.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{number}": value for number, value in enumerate(average)}
    for number, optimizer in enumerate(optimizers):
        for which, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                tensors[f"optimizer.{number}.{which}.{name}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    # Cloned, since safetensors refuses tensors that share memory, as tied embeddings do.
    own = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(own, fresh, metadata={"facts": json.dumps(facts)})
    fresh.replace(path)


def restore(
    path: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Sequence[Tensor] = (),
) -> dict[str, Any]:
    """Load a checkpoint of the same model and optimizers; returns its facts.

    Learning rates and decays stay as set in the optimizers: they may have been changed on purpose.
    """
    weights: dict[str, Tensor] = {}
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - the file is no mapping
            kind, rest = key.split(".", 1)
            value = file.get_tensor(key)
            if kind == "model":
                weights[rest] = value
            elif kind == "average":
                average[int(rest)].copy_(value)
            else:
                number, which, name = rest.split(".")
                states[int(number)].setdefault(int(which), {})[name] = value
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return facts
