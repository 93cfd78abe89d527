"""Optimizers for image adapters: learning rates, and state without pickle."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from llm_lora.engines.image.lora import Layers
from llm_lora.recipe.image import ImageTrain

_TEXT_SHARE = 0.5
"""Default text encoder learning rate, as a fraction of the UNet's (kohya's guide)."""


class Optimizer:
    """An optimizer whose learning rates depend only on the step."""

    def __init__(self, layers: Layers, train: ImageTrain, steps: int) -> None:
        """`steps` is the number of steps of the whole training."""
        self._train = train
        self._steps = steps
        self._rates: list[float] = []
        self.parameters: list[torch.nn.Parameter] = []
        groups = []
        for component, rate in (("unet.", train.learning_rate), ("text_encoder", text_rate(train))):
            if parameters := layers.parameters(component):
                groups.append({"params": parameters, "lr": rate})
                self._rates.append(float(rate))
                self.parameters += parameters
        self._optimizer = _make(train, groups)

    def rate(self, step: int) -> float:
        """The UNet's learning rate at a step, from 0."""
        return self._rates[0] * share(step, self._steps, self._train.warmup, self._train.schedule)

    def step(self, step: int, scaler: torch.amp.GradScaler) -> float:
        """Take a step with the current gradients, and clear them.

        Returns:
            the norm of the gradients before clipping to `train.max_grad_norm`.
        """
        factor = share(step, self._steps, self._train.warmup, self._train.schedule)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        # Clipping needs the true norm, so it comes after unscaling. In fp16 the scaler skips a step
        # whose gradients overflowed, and lowers its scale.
        scaler.unscale_(self._optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters, self._train.max_grad_norm)
        scaler.step(self._optimizer)
        scaler.update()
        self.clear()
        return float(length)

    def clear(self) -> None:
        """Clear gradients, before a step is tried again."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, torch.Tensor], str]:
        """The optimizer's state: tensors, and JSON for the rest."""
        whole = self._optimizer.state_dict()
        tensors, plain = {}, {}
        for index, entries in whole["state"].items():
            for name, value in _flat(entries):
                if isinstance(value, torch.Tensor):
                    tensors[f"{index}.{name}"] = value
                else:
                    plain[f"{index}.{name}"] = value
        # Mostly recipe settings, but Prodigy keeps its step size estimate in the groups.
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in whole["param_groups"]
        ]
        return tensors, json.dumps({"state": plain, "groups": groups})

    def load(self, tensors: Mapping[str, torch.Tensor], plain: str) -> None:
        """Restore the optimizer from a result of `state`."""
        rest = json.loads(plain)
        state: dict[int, dict[str, Any]] = {}
        for key, value in (*tensors.items(), *rest["state"].items()):
            index, *outer, name = key.split(".")
            place = state.setdefault(int(index), {})
            for one in outer:
                place = place.setdefault(one, {})
            place[name] = value
        # Groups keep the parameter numbers of this process; all other entries are restored.
        whole = self._optimizer.state_dict()
        for group, before in zip(whole["param_groups"], rest["groups"], strict=True):
            # JSON turned tuples into lists.
            group.update(
                {name: tuple(v) if isinstance(v, list) else v for name, v in before.items()}
            )
        self._optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _flat(entries: Mapping[str, object], outer: str = "") -> Iterator[tuple[str, object]]:
    """The entries of a state, flattened; bitsandbytes nests its 8-bit entries in a mapping."""
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", value


def text_rate(train: ImageTrain) -> float:
    """The learning rate of text encoders; Prodigy finds one rate for everything."""
    if train.optimizer == "prodigy":
        return train.learning_rate
    return train.text_encoder_learning_rate or train.learning_rate * _TEXT_SHARE


def share(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The share of the peak learning rate at a step: warm-up, then the schedule.

    >>> [round(share(step, 8, 0.25, "linear"), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17]
    """
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def _make(train: ImageTrain, groups: Sequence[dict[str, object]]) -> torch.optim.Optimizer:
    decay = train.weight_decay
    if train.optimizer == "adamw":
        # Fused: hundreds of small tensors would cost more in kernel launches than in arithmetic.
        return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    made: torch.optim.Optimizer
    # Imported where they are used: most recipes need neither.
    if train.optimizer == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        made = AdamW8bit(groups, weight_decay=decay)
    else:
        from prodigyopt import Prodigy

        # The authors' advice for diffusion: without safeguard_warmup, the warm-up distorts the
        # step size estimate. It prints its settings, which the redirect drops.
        careful = {"safeguard_warmup": True, "use_bias_correction": True}
        with contextlib.redirect_stdout(io.StringIO()):
            made = Prodigy(groups, weight_decay=decay, **careful)
    return made
