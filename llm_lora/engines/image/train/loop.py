"""The image training loop: every step gives the same result, however often training is interrupted.

A plain loop instead of accelerate's: one device needs no preparation, and everything that a step
depends on (the order, the noise and the dropout) follows from the seed and the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from llm_lora.chance import dice
from llm_lora.engines.image import painting
from llm_lora.engines.image import prompts as picture_prompts
from llm_lora.engines.image.latents import Cut, Latents
from llm_lora.engines.image.loading import Loaded
from llm_lora.engines.image.lora import Layers
from llm_lora.engines.image.noise import Noise, Noised, loss
from llm_lora.engines.image.prompts import Embedding, Texts
from llm_lora.engines.image.train.checkpoints import Checkpoint, Rungs, State, Steps
from llm_lora.engines.image.train.optimizer import Optimizer
from llm_lora.engines.image.train.order import Batch, Order, Shown
from llm_lora.engines.image.train.record import Record
from llm_lora.engines.shared import StopOnSignal, free_memory, is_out_of_memory, out_of_memory
from llm_lora.errors import UserError
from llm_lora.progress import Interrupted, Listener, Progress
from llm_lora.recipe.image import ImageRecipe

_LOG_EVERY = 5
_LEVELS = 4
"""Noise levels at which each held-out picture is measured."""
_WATCHED = 32
"""Largest number of held-out pictures measured while training."""
_AVERAGE_RISE = 10.0
"""Constant of the warm-up of the weights' moving average: decay (1 + n) / (10 + n) at step n, as in
diffusers' EMAModel."""

_SMALLER = (
    "everything that saves memory is on: lower data.resolution, lora.rank or generate.batch_size, "
    "or take a smaller base"
)


@dataclass(frozen=True)
class Means:
    """Everything that training works with, made by `image.fit`.

    `texts` encodes captions once; None if text encoders are trained or captions are too many.
    """

    recipe: ImageRecipe
    loaded: Loaded
    layers: Layers
    optimizer: Optimizer
    noise: Noise
    order: Order
    held_out: Sequence[Shown]
    texts: Texts | None
    latents: Callable[[bool], Latents]
    record: Record
    stop: StopOnSignal
    checkpoints: Path
    steps: Steps
    listener: Listener
    tell: Callable[[str], None]


class Training:
    """One run through an order, from its start or from a checkpoint."""

    def __init__(self, means: Means, resumed: Checkpoint | None) -> None:
        self._means = means
        train = means.recipe.train
        self._steps = len(means.order.steps)
        self._average: dict[str, torch.Tensor] = {}
        self._best: dict[str, torch.Tensor] = {}
        self.state = State(0, Rungs(train.checkpointing, cache=train.cache and self._stays))
        enabled = means.loaded.compute == torch.float16
        self._scaler = torch.amp.GradScaler(means.loaded.device.type, enabled=enabled)
        if train.ema is not None:
            self._average = {name: one.clone() for name, one in means.layers.tensors().items()}
        if resumed is not None:
            self._restore(resumed)
        self._latents = self._encoded(self.state.rungs.cache)
        self._watched = list(self._measurements())
        if self.state.rungs.checkpointing:
            self._checkpoint_activations()
        self._learning(True)

    @property
    def _stays(self) -> bool:
        """Whether every picture has the same crop each time, so that it is encoded only once."""
        return self._means.recipe.data.crop == "center"

    @property
    def ended(self) -> bool:
        """Whether training is complete."""
        train, state = self._means.recipe.train, self.state
        if train.patience is not None and state.best_loss is not None:
            waited = state.step - state.best_step
            if waited >= train.patience * train.save_every:
                return True
        return state.step >= self._steps

    def run(self) -> dict[str, torch.Tensor]:
        """Train to the end.

        Returns:
            the adapter's weights: the best or the last, as the recipe says; from the moving average
            if the recipe keeps one.

        Raises:
            Interrupted: the user stopped it; a checkpoint was saved.
            UserError: the loss is NaN, or memory ran out after every way to save it.
        """
        means, train = self._means, self._means.recipe.train
        if self.state.step == 0:
            self._measure(candidate=False)
            self._paint()
        while not self.ended:
            self._step()
            step = self.state.step
            last = step == self._steps
            if step % train.save_every == 0 or last:
                self._measure(candidate=True)
                means.steps.keep(self._told(), step, self.state.best_step)
            if step % train.sample_every == 0 or last or self.ended:
                self._paint()
            stopped = means.stop.requested and not self.ended
            # After the measurement, so that a resume knows the best step so far.
            if step % train.save_every == 0 or last or stopped:
                saved = self._save()
            if stopped:
                means.record.close()
                raise Interrupted(step, self._steps, saved)
        means.record.close()
        if train.takes_best and self._best:
            return self._best
        return {name: one.clone() for name, one in self._told().items()}

    # One step

    def _step(self) -> None:
        """One optimizer step; saves more memory and tries again when memory runs out."""
        means, step = self._means, self.state.step
        while True:
            try:
                total = self._gradients(means.order.steps[step])
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the traceback, and the tensors it held, are freed by now.
            # The step is repeated from its start, with the same noise and dropout.
            means.optimizer.clear()
            free_memory()
            self._climb()
        if not math.isfinite(total):
            raise UserError(
                f"the loss became NaN at step {step + 1}",
                where="train.learning_rate",
                fix="divide it by 3 or more and train again",
            )
        with out_of_memory(_SMALLER):
            length = means.optimizer.step(step, self._scaler)
        self._follow(step)
        self.state = self.state.stepped(total)
        if self.state.step % _LOG_EVERY == 0 or self.state.step == self._steps:
            rate = means.optimizer.rate(step)
            means.record.losses(self.state.step, self.state.pending, rate, length)
            self.state = replace(self.state, pending=())
        means.record.stepped(self.state.step, total)

    def _gradients(self, batches: Sequence[Batch]) -> float:
        """Accumulate the gradients of a step's batches; returns the mean loss of its pictures."""
        means = self._means
        # Seeds the adapter's dropout, the only user of the global generator.
        torch.manual_seed(dice("step", means.recipe.train.seed, self.state.step).getrandbits(63))
        count = sum(map(len, batches))
        total = 0.0
        for batch in batches:
            size = -(-len(batch) // self.state.rungs.split)
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                noised = means.noise.learn(
                    [self._latents[one.cut] for one in part], [one.key for one in part]
                )
                counts = torch.tensor([one.counts for one in part])
                guess = self._guess(
                    noised, [one.cut for one in part], [one.caption for one in part]
                )
                # Divided by the pictures of the whole step, so that neither accumulation nor a
                # split of the batch changes the gradient.
                lost = loss(guess, noised, counts) / count
                self._scaler.scale(lost).backward()
                total += lost.item()
        return total

    def _guess(self, noised: Noised, cuts: Sequence[Cut], captions: Sequence[str]) -> torch.Tensor:
        """The UNet's prediction for noised latents."""
        loaded = self._means.loaded
        device, compute = loaded.device, loaded.compute
        with loaded.autocast():
            told = self._embed(captions).to(device, compute)
            more: dict[str, dict[str, torch.Tensor]] = {}
            if told.pooled is not None:
                ids = torch.tensor([cut.time_ids for cut in cuts], device=device, dtype=compute)
                more["added_cond_kwargs"] = {"text_embeds": told.pooled, "time_ids": ids}
            guess: torch.Tensor = loaded.pipe.unet(
                noised.latents.to(device, compute),
                noised.timesteps.to(device),
                encoder_hidden_states=told.hidden,
                **more,
                return_dict=False,
            )[0]
        return guess

    def _embed(self, texts: Sequence[str]) -> Embedding:
        if self._means.texts is not None:
            return self._means.texts[texts]
        return picture_prompts.encode(self._means.loaded, texts)

    def _learning(self, learning: bool) -> None:
        loaded = self._means.loaded
        encoders = loaded.text_encoders.values() if self._means.recipe.lora.text_encoder else ()
        for part in (loaded.pipe.unet, *encoders):
            part.train(learning)

    def _follow(self, step: int) -> None:
        """Update the moving average of the weights."""
        decay = self._means.recipe.train.ema
        if decay is None:
            return
        decay = min(decay, (1 + step) / (_AVERAGE_RISE + step))
        for name, one in self._means.layers.tensors().items():
            self._average[name].lerp_(one, 1 - decay)

    # Saving memory

    def _climb(self) -> None:
        """Turn on the next measure that saves memory, the cheapest first.

        Raises:
            UserError: every measure is already on.
        """
        rungs = self.state.rungs
        largest = max(len(batch) for step in self._means.order.steps for batch in step)
        if not rungs.checkpointing:
            rungs = replace(rungs, checkpointing=True)
            self._checkpoint_activations()
            self._say("out of memory: gradient checkpointing is on from here on")
        elif not rungs.cache and self._stays:
            rungs = replace(rungs, cache=True)
            self._latents = self._encoded(True)
            self._say(
                "out of memory: pictures are encoded once from here on, and the VAE is unloaded"
            )
        elif rungs.split < largest:
            rungs = replace(rungs, split=rungs.split * 2)
            size = -(-largest // rungs.split)
            self._say(
                f"out of memory: batches run in {rungs.split} parts of {size} from here on; the "
                "training result stays the same"
            )
        else:
            raise UserError("out of memory", fix=_SMALLER)
        self.state = replace(self.state, rungs=rungs)

    def _say(self, decision: str) -> None:
        self.state = replace(self.state, climbed=(*self.state.climbed, decision))
        self._means.tell(decision)

    def _checkpoint_activations(self) -> None:
        loaded = self._means.loaded
        loaded.pipe.unet.enable_gradient_checkpointing()
        if self._means.texts is None:
            for encoder in loaded.text_encoders.values():
                encoder.gradient_checkpointing_enable()

    def _encoded(self, cache: bool) -> Latents:
        """The latents of all pictures; with a cache, all are encoded before the first step."""
        means = self._means
        latents = means.latents(cache)
        if not cache:
            return latents
        cuts = list(dict.fromkeys([*means.order.cuts(), *(one.cut for one in means.held_out)]))
        for number, cut in enumerate(cuts):
            latents.__getitem__(cut)
            means.listener(Progress("encoding pictures", number + 1, len(cuts)))
        means.loaded.pipe.vae.to("cpu")
        free_memory()
        return latents

    # Measuring and sampling

    def _measurements(self) -> Iterator[tuple[Noised, list[Cut], list[str]]]:
        """The held-out pictures in batches, with the same noise every time."""
        means = self._means
        # By bucket, because the pictures of a batch must have one size.
        chosen = sorted(means.held_out[:_WATCHED], key=lambda one: one.cut.bucket)
        size = means.recipe.train.batch_size
        for _, group in groupby(chosen, key=lambda one: one.cut.bucket):
            encoded = [(one, self._latents[one.cut]) for one in group]
            shown = [(*pair, level) for pair in encoded for level in range(_LEVELS)]
            for start in range(0, len(shown), size):
                part = shown[start : start + size]
                noised = means.noise.watch(
                    [latents for _, latents, _ in part],
                    [(one.key[0], level) for one, _, level in part],
                    _LEVELS,
                )
                yield noised, [one.cut for one, *_ in part], [one.caption for one, *_ in part]

    def _measure(self, *, candidate: bool) -> None:
        """Measure the held-out loss, with the same noise and levels every time (kohya's idea)."""
        if not self._watched:
            return
        total, count = 0.0, 0
        with self._averaged(), torch.no_grad():
            for noised, cuts, captions in self._watched:
                counts = torch.ones(len(cuts))
                total += loss(self._guess(noised, cuts, captions), noised, counts).item()
                count += len(cuts)
        mean, state = total / count, self.state
        self._means.record.validation(state.step, mean)
        if candidate and (state.best_loss is None or mean < state.best_loss):
            self.state = replace(state, best_loss=mean, best_step=state.step)
            if self._means.recipe.train.takes_best:
                self._best = {name: one.clone() for name, one in self._told().items()}

    def _paint(self) -> None:
        """Generate the sample prompts, each with its own fixed seed."""
        means = self._means
        generate, prompts = means.recipe.generate, means.recipe.train.samples
        if not prompts:
            return
        resolution = means.recipe.data.resolution or means.loaded.base.resolution
        settings = painting.Settings.of(generate, resolution)
        pictures = []
        with self._averaged(), torch.no_grad(), means.loaded.autocast():
            for start in range(0, len(prompts), generate.batch_size):
                part = prompts[start : start + generate.batch_size]
                seeds = [generate.seed + start + i for i in range(len(part))]
                negative = self._embed([settings.negative_prompt] * len(part))
                pictures += painting.render(
                    means.loaded, self._embed(part), negative, seeds, settings
                )
        means.record.painted(self.state.step, pictures)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model as it would be if training ended now: evaluation mode, averaged weights."""
        layers = self._means.layers
        own = {name: one.clone() for name, one in layers.tensors().items()}
        layers.load(self._told())
        self._learning(False)
        yield
        self._learning(True)
        layers.load(own)

    def _told(self) -> dict[str, torch.Tensor]:
        """The weights that the adapter would have if training ended now."""
        return self._average or self._means.layers.tensors()

    # Checkpoints

    def _save(self) -> Path:
        means = self._means
        tensors, rest = means.optimizer.state()
        scaler = {name: float(value) for name, value in self._scaler.state_dict().items()}
        checkpoint = Checkpoint(
            state=replace(self.state, scaler=scaler),
            weights=means.layers.tensors(),
            average=self._average,
            best=self._best,
            optimizer=tensors,
            rest=rest,
        )
        return checkpoint.write(means.checkpoints)

    def _restore(self, checkpoint: Checkpoint) -> None:
        # Into the existing parameters: the optimizer refers to them, and its state goes by their
        # order. All else of a step follows from its number.
        device = self._means.loaded.device
        self._means.layers.load(checkpoint.weights)
        self._means.optimizer.load(checkpoint.optimizer, checkpoint.rest)
        self._average = {name: one.to(device) for name, one in checkpoint.average.items()}
        self._best = {name: one.to(device) for name, one in checkpoint.best.items()}
        self.state = checkpoint.state
        for decision in checkpoint.state.climbed:
            self._means.tell(decision)
        if checkpoint.state.scaler:
            scaler = dict(checkpoint.state.scaler)
            for name in ("growth_interval", "_growth_tracker"):
                scaler[name] = int(scaler[name])
            self._scaler.load_state_dict(scaler)
