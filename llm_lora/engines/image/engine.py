"""The image engine: LoRA training of Stable Diffusion with diffusers and PEFT."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from llm_lora.adapter.webui import files as lora_files
from llm_lora.base import PictureBase
from llm_lora.data.image import PictureDataset
from llm_lora.engines.image import lora as picture_lora
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.cache import Cache
from llm_lora.engines.image.latents import Latents
from llm_lora.engines.image.loading import Loaded, load, noise_scheduler
from llm_lora.engines.image.lora import Layers
from llm_lora.engines.image.measure import judge
from llm_lora.engines.image.noise import Noise
from llm_lora.engines.image.painting import Painter, Settings
from llm_lora.engines.image.prompts import Texts
from llm_lora.engines.image.sheets import png, sheet, write_picture
from llm_lora.engines.image.train import Means, Optimizer, Order, Record, Steps, Training, text_rate
from llm_lora.engines.image.train import checkpoints as picture_checkpoints
from llm_lora.engines.image.train import order as picture_order
from llm_lora.engines.shared import (
    StopOnSignal,
    free_memory,
    full_disk,
    out_of_memory,
    peak_memory_bytes,
)
from llm_lora.progress import Fit, Listener, silent
from llm_lora.recipe.image import ImageRecipe
from llm_lora.run import Places
from llm_lora.weights import header

__all__ = [
    "Painter",
    "Settings",
    "fit",
    "judge",
    "peak_memory_bytes",
    "png",
    "sheet",
    "write_picture",
]

_SMALLER = (
    "in this order: train.checkpointing=true, train.cache=true, half train.batch_size with double "
    "train.accumulate, a smaller data.resolution (--set KEY=VALUE)"
)


def fit(
    recipe: ImageRecipe,
    dataset: PictureDataset,
    base: PictureBase,
    places: Places,
    *,
    resume: bool = False,
    listener: Listener = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Train a LoRA adapter and write it to `places.adapter`.

    Args:
        recipe: all settings except paths.
        dataset: checked pictures for training, for the held-out loss and for regularisation.
        base: the frozen pipeline.
        places: where to write.
        resume: continue from the newest complete checkpoint.
        listener: receives progress.
        tell: receives every decision, as a sentence.

    Raises:
        Interrupted: the user pressed Ctrl-C; a checkpoint was saved.
        UserError: out of memory after every way to save it, a NaN loss, or a base or an adapter
            that does not fit.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    train = recipe.train
    resolution = recipe.data.resolution or base.resolution
    order = picture_order.plan(recipe, dataset, resolution)
    decisions: list[str] = []

    def decide(text: str) -> None:
        decisions.append(text)
        tell(text)

    with out_of_memory(_SMALLER), full_disk(places.checkpoints):
        loaded = load(base, train.precision)
        decide(loaded.reason)
        layers = _layers(recipe, loaded, decide)
        trainable, frozen = picture_lora.counts(loaded, layers)
        decide(
            f"adapter of rank {layers.rank} in {len(layers.modules)} modules: {trainable:,} "
            f"parameters, {trainable / (trainable + frozen):.1%} of all; {len(order.steps)} steps "
            f"of {train.batch_size * train.accumulate} pictures at {resolution} pixels"
        )
        checkpoint = picture_checkpoints.newest(places.checkpoints) if resume else None
        record = Record(
            places.metrics,
            places.tensorboard,
            places.samples,
            listener,
            shown=order.shown,
            steps_per_epoch=order.steps_per_epoch,
            step=checkpoint.state.step if checkpoint else 0,
            peak_memory=peak_memory_bytes,
        )
        vae = Cache("latents", base.digest)

        def save(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
            picture_lora.save(weights, layers, folder, base, recipe.lora.dropout)

        stop = StopOnSignal()
        training = Training(
            Means(
                recipe=recipe,
                loaded=loaded,
                layers=layers,
                optimizer=Optimizer(layers, train, len(order.steps)),
                noise=Noise(
                    noise_scheduler(loaded),
                    scaling=loaded.pipe.vae.config.scaling_factor,
                    prediction=base.prediction,
                    min_snr=train.min_snr,
                    offset=train.noise_offset,
                    seed=train.seed,
                ),
                order=order,
                held_out=picture_order.held_out(recipe, dataset, resolution),
                texts=_texts(recipe, dataset, loaded, order, decide),
                latents=lambda cache: Latents(loaded, vae if cache else None),
                record=record,
                stop=stop,
                checkpoints=places.checkpoints,
                steps=Steps(places.steps, train.keep, save),
                listener=listener,
                tell=decide,
            ),
            checkpoint,
        )
        with stop:
            weights = training.run()
        save(weights, places.adapter)
    state = training.state
    del training
    free_memory()
    return Fit(
        steps=state.step,
        planned_steps=len(order.steps),
        tokens=0,
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - cpu_started,
        best_step=state.best_step if train.takes_best else state.step,
        best_validation_loss=state.best_loss,
        stopped_early=state.step < len(order.steps),
        trainable_parameters=trainable,
        base_parameters=frozen,
        peak_memory_bytes=peak_memory_bytes(),
        decisions=tuple(decisions),
        curve=tuple(record.rows),
        pictures=order.shown[state.step],
    )


def _layers(recipe: ImageRecipe, loaded: Loaded, decide: Callable[[str], None]) -> Layers:
    start = recipe.train.start_from
    if start is None:
        return picture_lora.fresh(loaded, recipe.lora, recipe.train.seed)
    layers, said = picture_lora.gone_on_from(loaded, start, recipe.lora, recipe.train.seed)
    decide(said)
    return layers


def _texts(
    recipe: ImageRecipe,
    dataset: PictureDataset,
    loaded: Loaded,
    order: Order,
    decide: Callable[[str], None],
) -> Texts | None:
    """All texts of a run, encoded once; None if they are encoded at every step.

    If they are encoded once, the text encoders are then moved off the device.
    """
    if recipe.lora.text_encoder:
        rate = text_rate(recipe.train)
        decide(
            f"text encoders are trained at learning rate {rate:g}; captions are encoded every step"
        )
        return None
    if not recipe.train.cache:
        decide("captions are encoded at every step: train.cache is off")
        return None
    # Shuffled captions run into thousands and differ in the next run: not worth a disk cache.
    texts = Texts(loaded, None if recipe.data.shuffle_tags else _text_cache(recipe, loaded))
    wanted = {
        *order.captions(),
        *(picture.caption for picture in dataset.held_out),
        *recipe.train.samples,
        recipe.generate.negative_prompt,
    }
    if not texts.fits(wanted):
        decide(f"{len(wanted)} different captions are too many to keep: encoded at every step")
        return None
    texts.learn(wanted)
    if cut := picture_prompts.cut_off(loaded, wanted):
        limit = loaded.pipe.tokenizer.model_max_length
        decide(f"{cut} of {len(wanted)} captions are longer than {limit} tokens and are truncated")
    for encoder in loaded.text_encoders.values():
        encoder.to("cpu")
    return texts


def _text_cache(recipe: ImageRecipe, loaded: Loaded) -> Cache:
    """The cache of encoded texts for this base, precision and adapter in the text encoders."""
    start = recipe.train.start_from
    adapter = header.sampled_sha256(lora_files.weights_file(start)) if start else ""
    return Cache("texts", loaded.base.digest, str(loaded.compute), adapter)
