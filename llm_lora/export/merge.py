"""Merging a run's adapter into its base: a complete model, ready to be served.

model*.safetensors  config.json  tokenizer …   what transformers and vLLM read
chat_template.jinja  answer.schema.json        as in the adapter's folder
llm_lora.json                                  the adapter's, and how closely the merge matches it
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_lora import engines, files, versions
from llm_lora.adapter import Adapter
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.files import Json
from llm_lora.progress import Watcher
from llm_lora.run import Run
from llm_lora.tasks.text import Prepared
from llm_lora.tasks.text import task as text_task
from llm_lora.weights import tensors

DEQUANTISED, ORIGINAL, AUTO = "dequantised", "original", "auto"
UNMERGED = "unmerged"
"""The unmerged adapter over the base in 16 bits."""

SHARD_BYTES = 5 * 10**9
EXAMPLES = 64
"""Number of held-out examples to measure: two thousand answer tokens or more."""

_FOUR_BITS = ("4bit", "4-bit", "nf4", "fp4", "int4")
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Nearness:
    """Means over the tokens of held-out answers: loss, divergence from what was trained, and the
    share of tokens that both rank first.
    """

    loss: float
    kl: float
    same: float


@dataclass(frozen=True)
class Figures:
    """The held-out answers of what was trained (over a base in `bits` bits) and of other forms."""

    examples: int
    tokens: int
    bits: int
    loss: float
    forms: Mapping[str, Nearness]

    def to_json(self) -> Json:
        """The figures as the manifest of a merged model holds them."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "trained": {"bits": self.bits, "loss": self.loss},
            "forms": {name: asdict(nearness) for name, nearness in self.forms.items()},
        }


@dataclass(frozen=True)
class Merged:
    """The base that was merged into, and how close it came; None where that was not measured."""

    into: str
    measured: Figures | None

    def to_json(self) -> Json:
        """The member `merged` of the manifest of a merged model."""
        return {"into": self.into, "measured": self.measured and self.measured.to_json()}


def check_into(into: str) -> None:
    """Refuse a merge that would not keep what was trained.

    Raises:
        UserError: 4-bit weights are requested, or `into` is unknown.
    """
    if into.lower() in _FOUR_BITS:
        raise UserError(
            "merging into 4-bit weights is refused: the adapter's changes are smaller than the "
            "steps between 4-bit numbers, so rounding would destroy them",
            where="--into",
            fix=f"merge into {DEQUANTISED} or {ORIGINAL}, or serve the adapter unmerged",
        )
    if into not in (AUTO, DEQUANTISED, ORIGINAL):
        raise UserError(
            f"cannot merge into {into!r}",
            where="--into",
            fix=f"choose one of {AUTO}, {DEQUANTISED}, {ORIGINAL}",
        )


def merge(
    here: Run,
    out: Path,
    watch: Watcher,
    *,
    into: str = AUTO,
    measure: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Write the merged model to a new folder, completely or not at all.

    Args:
        here: a run that has been trained.
        out: a folder that is missing or empty.
        watch: receives progress and decisions.
        into: "dequantised", "original", or "auto": whichever measures closer.
        measure: compare with what was trained, on held-out answers; needs memory for the model.
        shard_bytes: the largest size of a weight file.

    Returns:
        what the folder's manifest (llm_lora.json) holds of the merge.

    Raises:
        UserError: the adapter is damaged, belongs to another base or cannot be merged; `out` is
            taken; memory or disk space ran out.
    """
    files.require_new(out)
    with files.workspace(out) as space:
        built, merged = build(
            here, space, watch, into=into, measure=measure, shard_bytes=shard_bytes
        )
        files.put(built, out)
    return merged


def build(
    here: Run, space: Path, watch: Watcher, *, into: str, measure: bool, shard_bytes: int
) -> tuple[Path, Merged]:
    """Like `merge`, but leave the merged model in the workspace `space`."""
    check_into(into)
    prepared = text_task.reopen(here)
    adapter = adapters.read(here.adapter)
    adapters.require_base(adapter, prepared.base)
    candidates = _candidates(into, prepared.recipe.lora.bits, measure)
    _require_space(space, prepared, len(candidates))
    engine = engines.load(prepared.recipe.task)
    # Runs of earlier versions were trained without this check.
    engine.require_served_ids(prepared.base, prepared.chat, prepared.dataset.held_out)
    for candidate in candidates:
        watch.stage(f"Merging into the {candidate} base")
        folder = space / candidate
        folder.mkdir()
        untied = engine.merge(
            prepared.base,
            adapter,
            folder,
            into=candidate,
            precision=prepared.recipe.train.precision,
            shard_bytes=shard_bytes,
            listener=watch.progress,
        )
        _accompany(folder, prepared, adapter, untied=untied)
    figures = _measure(engine, prepared, adapter, space, candidates, watch) if measure else None
    chosen = candidates[0]
    if figures is not None:
        chosen = min(candidates, key=lambda name: figures.forms[name].kl)
    folder = space / chosen
    merged = Merged(chosen, figures)
    files.write_json(folder / adapters.MANIFEST, _manifest(folder, adapter, merged))
    return folder, merged


def _candidates(into: str, bits: int, measure: bool) -> list[str]:
    """The merges to make; the first is the default where nothing is measured.

    Raises:
        UserError: a dequantised base is requested, but training did not quantise it.
    """
    if bits == 16:
        if into == DEQUANTISED:
            raise UserError(
                "this adapter was trained on the unquantised base (lora.bits: 16)",
                where="--into",
                fix=f"merge into {ORIGINAL}",
            )
        return [ORIGINAL]
    if into != AUTO:
        return [into]
    return [DEQUANTISED, ORIGINAL] if measure else [DEQUANTISED]


def _require_space(space: Path, prepared: Prepared, copies: int) -> None:
    """Refuse before hours of work that would end on a full disk.

    Raises:
        UserError: the weights do not fit on the disk.
    """
    size = sum(tensor.size for tensor in tensors.of_model(prepared.base.path).values())
    free = shutil.disk_usage(space).free
    if free < size * copies:
        raise UserError(
            f"not enough disk space: {size * copies / 1e9:.1f} GB needed "
            f"({copies} times {size / 1e9:.1f} GB), {free / 1e9:.1f} GB free",
            where=str(space.parent),
            fix="free some space, or choose one merge with --into",
        )


def _accompany(folder: Path, prepared: Prepared, adapter: Adapter, *, untied: bool) -> None:
    """Add the files that loading and serving the weights needs."""
    base = prepared.base.path
    for pattern in _COMPANIONS:
        for path in sorted(base.glob(pattern)):
            if path.name != tensors.INDEX:
                files.write_bytes(folder / path.name, files.read_bytes(path))
    for name in (adapters.TEMPLATE, adapters.SCHEMA):
        if (adapter.path / name).is_file():
            files.write_bytes(folder / name, files.read_bytes(adapter.path / name))
    if untied:
        config = bases.read_config(folder) | {"tie_word_embeddings": False}
        files.write_json(folder / bases.CONFIG, config)


def _measure(
    engine: Any,
    prepared: Prepared,
    adapter: Adapter,
    space: Path,
    candidates: Sequence[str],
    watch: Watcher,
) -> Figures:
    """Held-out loss of every form and its divergence from the trained one."""
    examples = spread(prepared.dataset.held_out, EXAMPLES)
    watch.stage("Measuring on held-out answers")
    bits = prepared.recipe.lora.bits
    forms = {
        name: engine.Form(bases.resolve(str(space / name)), None, bits=16) for name in candidates
    }
    if bits == 4:
        forms[UNMERGED] = engine.Form(prepared.base, adapter.path, bits=16)
    scratch = space / "scratch"
    scratch.mkdir()
    trained, others = engine.compare(
        engine.Form(prepared.base, adapter.path, bits=bits),
        forms,
        prepared.chat,
        examples,
        precision=prepared.recipe.train.precision,
        scratch=scratch,
        listener=watch.progress,
    )
    shutil.rmtree(scratch)
    return Figures(
        examples=len(examples),
        tokens=sum(prepared.chat.encode(example).answer_tokens for example in examples),
        bits=bits,
        loss=trained.loss,
        forms={name: Nearness(**asdict(nearness)) for name, nearness in others.items()},
    )


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples, evenly spaced from first to last."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _manifest(folder: Path, adapter: Adapter, merged: Merged) -> Json:
    # As it was written, so that nothing is lost that a newer version added.
    own = files.read_object(adapter.path / adapters.MANIFEST)
    kept = {key: value for key, value in own.items() if key != "digest"}
    return {
        **kept,
        "kind": "merged",
        "digest": bases.resolve(str(folder)).digest,
        "adapter": {"digest": adapter.digest, "rank": adapter.rank, "alpha": adapter.alpha},
        "merged": merged.to_json(),
        "versions": versions.installed(),
    }
