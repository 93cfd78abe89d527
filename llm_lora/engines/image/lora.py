"""The LoRA layers of a pipeline: adding, continuing, reading and saving them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.adapter.webui import Module
from llm_lora.adapter.webui import files as lora_files
from llm_lora.base import PictureBase
from llm_lora.engines.image.fused import fuse
from llm_lora.engines.image.loading import Loaded
from llm_lora.errors import UserError
from llm_lora.recipe.image import ImageLora
from llm_lora.weights import arrays

if TYPE_CHECKING:
    from llm_lora.weights import Array

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TARGETS = {
    "attention": _ATTENTION,
    # With the projections around them, the modules that kohya's sd-scripts adapt: 192 of SD 1.5.
    "attention+ff": (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
}
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_TARGETS = (*_TEXT_ATTENTION, "mlp.fc1", "mlp.fc2")
_NAME = "default"
_TEXT = "text_model."


@dataclass(frozen=True)
class Layers:
    """The adapter's layers in a pipeline.

    Attributes:
        modules: PEFT's layers by the names that `webui` gives modules.
        rank, alpha: of every layer.
        trained: the names of those that are trained; the others come frozen from the adapter that
            training started from.
    """

    modules: dict[str, LoraLayer]
    rank: int
    alpha: float
    trained: frozenset[str]

    def parameters(self, component: str | None = None) -> list[torch.nn.Parameter]:
        """The trained parameters, of all components or of those that begin with `component`."""
        return [
            half.weight
            for name, module in self.modules.items()
            if name in self.trained and name.startswith(component or "")
            for half in (module.lora_A[_NAME], module.lora_B[_NAME])
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of all layers, under the keys of the adapter's file."""
        return {
            f"{name}.lora_{side}.weight": getattr(module, f"lora_{side}")[_NAME].weight.detach()
            for name, module in self.modules.items()
            for side in "AB"
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the weights from a result of `tensors`."""
        for key, tensor in self.tensors().items():
            tensor.copy_(tensors[key])


def modules(loaded: Loaded) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Every module of the components that an adapter can change, named as in `webui`."""
    return {
        f"{component}.{_full(component, path)}": module
        for component, part in loaded.trained_parts.items()
        for path, module in part.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def _full(component: str, path: str) -> str:
    """Restore `text_model.`, which transformers 5.6 removed from one of its two text models."""
    return path if component == "unet" or path.startswith(_TEXT) else _TEXT + path


def shapes(loaded: Loaded) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that an adapter can change, by module."""
    return {name: tuple(one.weight.shape) for name, one in modules(loaded).items()}


def fresh(loaded: Loaded, lora: ImageLora, seed: int) -> Layers:
    """Add a new adapter to a pipeline; it changes nothing until it is trained.

    Raises:
        UserError: a target matches no module.
    """
    names = _targets(loaded, lora)
    ranks = dict.fromkeys(names, lora.rank)
    return _put(loaded, ranks, lora.alpha, lora.dropout, seed, trained=frozenset(names))


def _targets(loaded: Loaded, lora: ImageLora) -> list[str]:
    ends = lora.targets if isinstance(lora.targets, tuple) else _TARGETS[lora.targets]
    every = modules(loaded)
    in_unet = [name for name in every if name.startswith("unet.")]
    lacking = [end for end in ends if not _ending(in_unet, [end])]
    if lacking:
        raise UserError(
            f"no module of the UNet ends with {', '.join(lacking)}",
            where="lora.targets",
            fix="use attention or attention+ff, or name modules such as to_q",
        )
    found = _ending(in_unet, ends)
    if lora.text_encoder:
        found += _ending([name for name in every if name not in in_unet], _TEXT_TARGETS)
    return found


def _ending(names: Sequence[str], ends: Sequence[str]) -> list[str]:
    return [name for name in names if any(name.endswith(f".{end}") for end in ends)]


def gone_on_from(loaded: Loaded, path: Path, lora: ImageLora, seed: int) -> tuple[Layers, str]:
    """Add an existing adapter to a pipeline for further training; also returns a description.

    Its own rank, alpha and modules apply, not the recipe's. If they differ between modules, all get
    the largest rank and the most common alpha; the adapter's effect stays the same.

    Raises:
        UserError: it cannot be read, or does not fit this base.
    """
    before = lora_files.read(path, loaded.base.family)
    lora_files.require_fit(before, shapes(loaded), str(path))
    ranks = [update.rank for update in before.values()]
    alphas = [update.alpha for update in before.values()]
    rank, alpha = max(ranks), max(alphas, key=alphas.count)
    trained = frozenset(name for name in before if lora.text_encoder or name.startswith("unet."))
    names = [name for name in modules(loaded) if name in before]
    if lora.text_encoder and not any(name.startswith("text_encoder") for name in before):
        more = [name for name in _targets(loaded, lora) if name.startswith("text_encoder")]
        names, trained = names + more, trained | frozenset(more)
    if not trained:
        raise UserError(
            "nothing would be trained: this adapter changes only text encoders",
            where=str(path),
            fix="set lora.text_encoder: true",
        )
    layers = _put(loaded, dict.fromkeys(names, rank), alpha, lora.dropout, seed, trained=trained)
    with torch.no_grad():
        for name, update in before.items():
            _fill(layers.modules[name], update, alpha / rank)
    said = f"continuing from {path.name}: rank {rank}, alpha {alpha:g}, {len(before)} modules"
    if len(set(ranks)) > 1 or len(set(alphas)) > 1:
        said += "; their ranks or alphas differed and are now the same"
    return layers, said


def _fill(module: LoraLayer, update: Module, scale: float) -> None:
    """Set a layer (of at least the update's rank) to an update, which may have another scale."""
    down, up = module.lora_A[_NAME].weight, module.lora_B[_NAME].weight
    factor = update.alpha / update.rank / scale
    rank = update.rank
    # The rows of `down` beyond the update's rank stay random and those of `up` are zero: the effect
    # is the update's, yet the added ranks get gradients.
    down[:rank] = _tensor(update.down, down).reshape(rank, *down.shape[1:])
    up.zero_()
    up[:, :rank] = _tensor(update.up, up).reshape(up.shape[0], rank, *up.shape[2:]) * factor


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(like.device)


def _put(
    loaded: Loaded,
    ranks: Mapping[str, int],
    alpha: float,
    dropout: float,
    seed: int,
    *,
    trained: frozenset[str],
) -> Layers:
    torch.manual_seed(seed)
    found: dict[str, LoraLayer] = {}
    for component, part in loaded.trained_parts.items():
        own = {
            path: rank
            for path, module in part.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
            and (rank := ranks.get(f"{component}.{_full(component, path)}"))
        }
        if not own:
            continue
        config = LoraConfig(
            r=max(own.values()),
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=[*own],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, part, _NAME)
        # New layers start in training mode, whatever mode the component is in.
        part.eval()
        for path, module in part.named_modules():
            if isinstance(module, LoraLayer):
                found[f"{component}.{_full(component, path)}"] = module
    rank = max(ranks.values())
    for name, module in found.items():
        for half in (module.lora_A[_NAME], module.lora_B[_NAME]):
            # Small updates would round to nothing in half precision.
            half.weight.data = half.weight.data.float()
            half.weight.requires_grad_(name in trained)
        fuse(module)
    return Layers(found, rank, alpha, trained)


def counts(loaded: Loaded, layers: Layers) -> tuple[int, int]:
    """The number of trained parameters, and of all parameters of the adapted components."""
    trained = sum(parameter.numel() for parameter in layers.parameters())
    own = sum(tensor.numel() for tensor in layers.tensors().values())
    parts = {name.partition(".")[0] for name in layers.modules}
    every = sum(
        parameter.numel()
        for part, model in loaded.trained_parts.items()
        if part in parts
        for parameter in model.parameters()
    )
    return trained, every - own


def save(
    tensors: Mapping[str, torch.Tensor],
    layers: Layers,
    adapter: Path,
    base: PictureBase,
    dropout: float,
) -> None:
    """Write the adapter's folder atomically: weights and PEFT's configuration, with the real alpha.

    diffusers reads alpha from the file's metadata, and uses the rank if it is missing there.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    unfinished = adapter.with_name(f".{adapter.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    found = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    arrays.write(unfinished / adapters.WEIGHTS, found, metadata(layers))
    config = {
        "peft_type": "LORA",
        "r": layers.rank,
        "lora_alpha": _plain(layers.alpha),
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": sorted(layers.modules),
        # The name, not the path: the same recipe gives the same bytes in another folder.
        "base_model_name_or_path": base.name,
    }
    files.write_text(unfinished / adapters.CONFIG, json.dumps(config, indent=2) + "\n")
    shutil.rmtree(adapter, ignore_errors=True)
    unfinished.replace(adapter)


def metadata(layers: Layers) -> dict[str, str]:
    """The metadata that diffusers expects in an adapter's file: rank, alpha, modules."""
    notes: dict[str, Any] = {}
    for name in sorted(layers.modules):
        part, _, path = name.partition(".")
        notes[f"{part}.r"] = layers.rank
        notes[f"{part}.lora_alpha"] = _plain(layers.alpha)
        # As a name suffix it matches the module with and without the component in front.
        notes.setdefault(f"{part}.target_modules", []).append(path.removeprefix(_TEXT))
    return {"format": "pt", "lora_adapter_metadata": json.dumps(notes, sort_keys=True)}


def _plain(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha
