"""Adapter files for Stable Diffusion: reading of every known layout, writing of the WebUIs' one.

kohya's layout (`webui`), PEFT's, and those of diffusers' training scripts, old and new.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from llm_lora import files
from llm_lora.adapter.webui.modules import module, stem
from llm_lora.base import Family
from llm_lora.errors import Problem, UserError
from llm_lora.weights import arrays

if TYPE_CHECKING:
    from llm_lora.weights import Array

_HALVES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
_HALF = re.compile(r"(?P<module>.+?)\.(?P<half>" + "|".join(map(re.escape, _HALVES)) + ")")
_OTHER_KINDS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "lora_mid": "LoCon with Tucker decomposition",
}
_SHOWN = 12


@dataclass(frozen=True)
class Module:
    """The update of one module's weight: alpha / rank x up @ down.

    `down` is rank x in, and rank x in x k x k for a convolution; `up` is out x rank (x 1 x 1).
    """

    down: Array
    up: Array
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def inputs(self) -> int:
        """Number of inputs of each output; for a convolution, those in its kernel."""
        return int(self.down.size) // self.rank


Lora = dict[str, Module]
"""An adapter: its modules by name."""


def to_arrays(lora: Lora, family: Family, where: str = "adapter") -> dict[str, Array]:
    """An adapter under kohya's names, with the alpha of every module.

    Raises:
        UserError: modules that this family does not have (lists all of them).
    """
    import numpy as np

    stems = _all_named(lora, lambda name: stem(name, family), where, family)
    found: dict[str, Array] = {}
    for name, update in lora.items():
        found[f"{stems[name]}.lora_down.weight"] = update.down
        found[f"{stems[name]}.lora_up.weight"] = update.up
        found[f"{stems[name]}.alpha"] = np.array(update.alpha, update.down.dtype)
    return found


def read(path: Path, family: Family) -> Lora:
    """Read an adapter's modules from a file of any layout, or from a run's adapter folder.

    Supported are kohya's names, PEFT's and those of diffusers' training scripts. Alpha comes from
    the file, its metadata or the folder's adapter_config.json; otherwise it equals the rank, as
    front ends assume.

    Raises:
        UserError: the file is damaged, is not plain LoRA, or is for another architecture (names
            the keys that do not fit).
    """
    file = weights_file(path)
    found, notes = arrays.read(file)
    config = path / "adapter_config.json"
    alphas = None
    if path.is_dir() and config.is_file():
        alphas = _alphas(files.read_bytes(config), _peft_alphas, config)
    elif "lora_adapter_metadata" in notes:
        alphas = _alphas(notes["lora_adapter_metadata"], _diffusers_alphas, file)
    return from_arrays(found, family, str(file), alphas)


def weights_file(adapter: Path) -> Path:
    """The file with an adapter's weights, given the file or its folder."""
    return adapter / "adapter_model.safetensors" if adapter.is_dir() else adapter


Alphas = Callable[[str, int], float | None]
"""Alpha by module and rank; None if it is not stated."""


class _PeftConfig(TypedDict, total=False):
    """What is read of PEFT's configuration; `_alphas` refuses other types."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool


def _alphas(text: str | bytes, read_from: Callable[[Any], Alphas], where: Path) -> Alphas:
    """Read alphas from a configuration.

    Raises:
        UserError: it is not a valid configuration.
    """
    try:
        return read_from(json.loads(text))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(
            "its configuration is damaged", where=str(where), fix="copy it again"
        ) from None


def _peft_alphas(config: _PeftConfig) -> Alphas:
    """Alpha from PEFT's configuration.

    With `use_rslora` PEFT divides alpha by the square root of the rank (arXiv 2312.03732); here it
    is always divided by the rank, so alpha is scaled up accordingly.
    """
    pattern = {end: float(value) for end, value in (config.get("alpha_pattern") or {}).items()}
    usual = None if (value := config.get("lora_alpha")) is None else float(value)
    rooted = bool(config.get("use_rslora"))

    def alpha(module: str, rank: int) -> float | None:
        own = (value for end, value in pattern.items() if f".{module}".endswith(f".{end}"))
        told = next(own, usual)
        return told if told is None or not rooted else told * math.sqrt(rank)

    return alpha


def _diffusers_alphas(config: Mapping[str, object]) -> Alphas:
    """Alpha from diffusers' metadata: PEFT's keys, each prefixed with its component."""
    parts: dict[str, dict[str, object]] = {}
    for key, value in config.items():
        component, _, name = key.partition(".")
        parts.setdefault(component, {})[name] = value
    alphas = {component: _peft_alphas(cast(_PeftConfig, part)) for component, part in parts.items()}

    def alpha(module: str, rank: int) -> float | None:
        component, _, path = module.partition(".")
        return alphas[component](path, rank) if component in alphas else None

    return alpha


def from_arrays(
    found: Mapping[str, Array], family: Family, where: str, alphas: Alphas | None = None
) -> Lora:
    """`read`, for arrays in memory.

    Raises:
        UserError: as `read`.
    """
    halves, strange = {}, []
    for key in found:
        match = _HALF.fullmatch(key)
        if match is None:
            strange.append(key)
        else:
            halves[key] = match["module"], _HALVES[match["half"]]
    if strange:
        raise _not_lora(strange, where)
    if not halves:
        raise UserError("the file has no weights", where=where, fix="is this a LoRA?")
    written = dict.fromkeys(name for name, _ in halves.values())
    names = _all_named(written, lambda name: _from_any(name, family), where, family)
    keys: dict[str, dict[str, str]] = {}
    problems = []
    for key, (name, half) in halves.items():
        first = keys.setdefault(names[name], {}).setdefault(half, key)
        if first != key:
            what = f"{first} and {key} are the same part of one module"
            problems.append(Problem(what, where, "keep the one that is meant"))
    parts = {name: {half: found[key] for half, key in own.items()} for name, own in keys.items()}
    for name, part in parts.items():
        faults = _faults(keys[name], part)
        problems += [Problem(what, where, "copy the file again") for what in faults]
    if problems:
        raise UserError(problems)
    lora = {name: _module(name, part, alphas) for name, part in parts.items()}
    endless = [name for name, update in lora.items() if not math.isfinite(update.alpha)]
    if endless:
        raise UserError(
            f"alpha is not a finite number for {len(endless)} modules: {_some(endless)}",
            where=where,
            fix="correct lora_alpha in its configuration",
        )
    return lora


def _faults(keys: Mapping[str, str], part: Mapping[str, Array]) -> Iterator[str]:
    """Why a module's tensors are not LoRA; `keys` are their names in the file."""
    down, up, alpha = (part.get(half) for half in ("down", "up", "alpha"))
    for half, array in (("down", down), ("up", up)):
        if array is None:
            yield f"{next(iter(keys.values()))} has no matching {half} half"
        elif array.dtype.kind != "f":
            yield f"{keys[half]} is {array.dtype}, not floating point"
    if down is not None and up is not None:
        both = f"{keys['down']} {down.shape} and {keys['up']} {up.shape}"
        if min(down.ndim, up.ndim) < 2 or down.shape[0] != up.shape[1]:
            yield f"{both} do not belong together"
        elif not (down.size and up.size == up.shape[0] * up.shape[1]):
            yield f"{both} are not LoRA halves"
    if alpha is not None and (alpha.size != 1 or not math.isfinite(alpha.item())):
        yield f"{keys['alpha']} must be one finite number"


def _module(name: str, part: Mapping[str, Array], alphas: Alphas | None) -> Module:
    rank = part["down"].shape[0]
    own = part.get("alpha")
    told = alphas and alphas(name, rank) if own is None else float(own.item())
    return Module(part["down"], part["up"], float(rank) if told is None else told)


def _from_any(name: str, family: Family) -> str:
    """A module's name from any layout's.

    Raises:
        ValueError: this family has no such module.
    """
    if name.startswith("lora_"):
        return module(name, family)
    plain = name.removeprefix("base_model.model.")
    component, _, path = plain.partition(".")
    if component.startswith("text_encoder") and not path.startswith("text_model."):
        # transformers 5.6 removed the component from the names of one of its two text models.
        path = f"text_model.{path}"
    # Attention processors of old diffusers: attn1.processor.to_q_lora.
    path = re.sub(r"\.processor\.(to_(?:q|k|v|out))_lora$", r".\1", path)
    path = re.sub(r"\.to_out$", ".to_out.0", path)
    stem(full := f"{component}.{path}", family)
    return full


def _all_named(
    names: Iterable[str], convert: Callable[[str], str], where: str, family: Family
) -> dict[str, str]:
    converted, wrong = {}, []
    for name in names:
        try:
            converted[name] = convert(name)
        except ValueError:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(wrong) + len(converted)} modules are not of this base's "
            f"architecture ({family}): {_some(wrong)}",
            where=where,
            fix=f"use it with the base it was made for{_guess(wrong, family)}",
        )
    return converted


def _guess(names: Iterable[str], family: Family) -> str:
    joined = " ".join(names)
    if family != "sdxl" and re.search(r"lora_te[12]_|input_blocks_|text_encoder_2", joined):
        return ", which is SDXL by its names"
    if family == "sdxl" and re.search(r"lora_te_", joined):
        return ", which is SD 1 or SD 2 by its names"
    if re.search(r"transformer\.|single_blocks|double_blocks|joint_blocks", joined):
        return ", which is SD 3 or FLUX by its names"
    return ""


def _not_lora(keys: list[str], where: str) -> UserError:
    for sign, kind in _OTHER_KINDS.items():
        if any(sign in key for key in keys):
            return UserError(
                f"a {kind} adapter, which is not supported: {_some(keys)}",
                where=where,
                fix="only plain LoRA is supported",
            )
    return UserError(
        f"{len(keys)} keys are not LoRA keys: {_some(keys)}", where=where, fix="is this a LoRA?"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def require_fit(lora: Lora, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse an adapter whose modules the base lacks, or has in another shape.

    Args:
        lora: the adapter.
        shapes: of the weights of the base's modules, by module name.
        where: the adapter's name in messages.

    Raises:
        UserError: modules do not fit (lists all of them).
    """
    wrong = []
    for name, update in lora.items():
        shape = shapes.get(name)
        if shape is None:
            wrong.append(f"{name} is not in the base")
        elif update.up.shape[0] != shape[0] or update.inputs != math.prod(shape[1:]):
            own = f"{update.up.shape[0]} x {update.inputs}"
            wrong.append(f"{name} is {own}, in the base {shape[0]} x {math.prod(shape[1:])}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(lora)} modules do not fit the base: {_some(wrong)}",
            where=where,
            fix="use it with the base it was made for",
        )
