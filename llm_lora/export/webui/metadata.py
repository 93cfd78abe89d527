"""Metadata for WebUIs: kohya's `ss_…` keys, and Stability AI's ModelSpec 1.0.1.

All values are strings. WebUIs use them to decide whether an adapter fits a base, and hide those
that do not. Sources: train_network.py and library/sai_model_spec.py of kohya's
sd-scripts; ui_extra_networks_lora.py and network.py of AUTOMATIC1111's stable-diffusion-webui.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_lora import files
from llm_lora.adapter.webui import Lora
from llm_lora.base import FAMILIES, Family, Prediction
from llm_lora.recipe.image import ImageRecipe
from llm_lora.weights import arrays

if TYPE_CHECKING:
    from llm_lora.weights import Array

SPEC = "1.0.1"

_OPTIMIZERS = {
    "adamw": "torch.optim.adamw.AdamW",
    "adamw-8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "prodigy": "prodigyopt.prodigy.Prodigy",
}
_LEGACY_FROM, _LEGACY_BYTES = 0x100000, 0x10000


@dataclass(frozen=True)
class Trained:
    """Facts about an adapter's training.

    Attributes:
        name: of the adapter.
        recipe: of its training.
        base: name of the base; `family` and `prediction` are the base's.
        resolution: side in pixels of the square size of training.
        captions: of the training pictures.
        regularisation: the number of regularisation pictures.
        buckets: the number of pictures of each size (width, height).
        steps: optimizer steps done; `epochs` passes over the pictures.
        started, seconds: when training began, and how long it took.
    """

    name: str
    recipe: ImageRecipe
    base: str
    family: Family
    prediction: Prediction
    resolution: int
    captions: Sequence[str]
    regularisation: int
    buckets: Mapping[tuple[int, int], int]
    steps: int
    epochs: float
    started: datetime
    seconds: float


def describe(lora: Lora, found: Mapping[str, Array], trained: Trained) -> dict[str, str]:
    """The metadata of an adapter's file.

    Args:
        lora: the adapter.
        found: its arrays under the keys of the file, for the digests.
        trained: facts about its training.
    """
    notes = {**_kohya(lora, trained), **_spec(trained)}
    notes |= hashes(found, notes)
    notes["modelspec.hash_sha256"] = f"0x{notes['sshs_model_hash']}"
    # transformers and diffusers require it.
    return {"format": "pt", **notes}


def user_notes(trained: Trained) -> dict[str, Any]:
    """The content of NAME.json beside an adapter: a click in a WebUI inserts the trigger."""
    return {
        "description": f"trained on {trained.base} with llm-lora",
        "sd version": FAMILIES[trained.family].ui_version,
        "activation text": trained.recipe.data.trigger or "",
        "preferred weight": 0.0,
        "notes": "",
    }


def _kohya(lora: Lora, trained: Trained) -> dict[str, str]:
    recipe = trained.recipe
    data, train = recipe.data, recipe.train
    folder = data.train.name
    first = next(iter(lora.values()))
    started = trained.started.timestamp()
    side = trained.resolution
    sizes = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(trained.buckets.items()))
    }
    return {
        "ss_v2": str(trained.family == "sd2"),
        "ss_base_model_version": FAMILIES[trained.family].version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(update.rank for update in lora.values())),
        "ss_network_alpha": f"{first.alpha:g}",
        "ss_network_args": json.dumps({}),
        "ss_output_name": trained.name,
        "ss_sd_model_name": trained.base,
        "ss_clip_skip": "None",
        "ss_training_started_at": str(started),
        "ss_training_finished_at": str(started + trained.seconds),
        "ss_seed": str(train.seed),
        "ss_resolution": f"({side}, {side})",
        "ss_num_train_images": str(len(trained.captions) * data.repeats),
        "ss_num_reg_images": str(trained.regularisation),
        "ss_num_epochs": f"{trained.epochs:g}",
        "ss_steps": str(trained.steps),
        "ss_max_train_steps": str(trained.steps),
        "ss_batch_size_per_device": str(train.batch_size),
        "ss_gradient_accumulation_steps": str(train.accumulate),
        "ss_unet_lr": f"{train.learning_rate:g}",
        "ss_learning_rate": f"{train.learning_rate:g}",
        "ss_lr_scheduler": train.schedule,
        "ss_optimizer": _OPTIMIZERS[train.optimizer],
        "ss_min_snr_gamma": str(train.min_snr),
        "ss_noise_offset": f"{train.noise_offset:g}",
        "ss_network_dropout": f"{recipe.lora.dropout:g}",
        "ss_enable_bucket": str(data.buckets),
        "ss_bucket_info": json.dumps({"buckets": sizes}),
        "ss_dataset_dirs": json.dumps(
            {folder: {"n_repeats": data.repeats, "img_count": len(trained.captions)}}
        ),
        "ss_tag_frequency": json.dumps({folder: tags(trained.captions)}, ensure_ascii=False),
    }


def _spec(trained: Trained) -> dict[str, str]:
    traits = FAMILIES[trained.family]
    side = trained.resolution
    notes = {
        "sai_model_spec": SPEC,
        "architecture": f"{traits.architecture[trained.prediction]}/lora",
        "implementation": traits.implementation,
        "title": trained.name,
        "resolution": f"{side}x{side}",
        "description": f"LoRA trained on {trained.base}",
        "date": trained.started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "prediction_type": trained.prediction,
        "tags": ", ".join([*tags(trained.captions)][:20]),
    }
    if trained.recipe.data.trigger:
        notes["trigger_phrase"] = trained.recipe.data.trigger
    return {f"modelspec.{key}": value for key, value in notes.items() if value}


def tags(captions: Sequence[str]) -> dict[str, int]:
    """The number of captions with each tag (text between commas), the most frequent first."""
    counts = Counter(
        tag for caption in captions for tag in {part.strip() for part in caption.split(",")} if tag
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def hashes(found: Mapping[str, Array], notes: Mapping[str, str]) -> dict[str, str]:
    """The digests that WebUIs look up: one of the data, and a legacy one of a part of the file.

    They are computed as if the file had only its `ss_…` keys, so that a later change of the title
    does not change them (`precalculate_safetensors_hashes` in kohya's sd-scripts).
    """
    kept = {key: value for key, value in notes.items() if key.startswith("ss_")}
    body = arrays.body(found)
    whole = arrays.header(found, kept) + body
    part = whole[_LEGACY_FROM : _LEGACY_FROM + _LEGACY_BYTES]
    return {
        "sshs_model_hash": files.sha256(body),
        "sshs_legacy_hash": files.sha256(part)[:8],
    }
