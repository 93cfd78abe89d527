"""Benchmark of image LoRA training steps: llm-lora against diffusers' own example script.

The reference is `examples/text_to_image/train_text_to_image_lora.py` of diffusers' repository, run
unchanged if `--script` names a copy of it (it is not in the installed package, and needs
torchvision); and its loop, rebuilt here from the same parts of diffusers without accelerate and
datasets, which is as fast or faster. At every step both load the pictures, encode them with
the VAE and their captions with the text encoder; then forward, backward, clipping, AdamW. All train
the same base in fp32 on the same folder, in batches of one size, with LoRA of one rank in the 128
modules that the script adapts. Each variant runs in its own process; the first steps are not
counted, nor is llm-lora's one-time encoding before them, which is reported separately. Memory is
the peak of the process.

    python benchmarks/image_step.py                # Stable Diffusion 1.5 at a quarter of its width
    python benchmarks/image_step.py --base tiny    # the embedded base
    python benchmarks/image_step.py --base ./models/sd15 --data ./pictures --resolution 512
    python benchmarks/image_step.py --script train_text_to_image_lora.py

The share of encoding in a step depends on the sizes of VAE and UNet. The embedded base has a small
VAE; the default base has random weights, but the proportions of Stable Diffusion 1.5.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TINY = ROOT / "llm_lora" / "assets" / "tiny_image"
DATA = ROOT / "data_templates" / "style_lora" / "train"
SCRIPT, LOOP = "diffusers' script", "its loop alone"
WAYS = (SCRIPT, LOOP, "llm-lora, nothing kept", "llm-lora")
RANK, RATE = 8, 1e-4
WARMUP = 3
QUARTER = "quarter"
"""Stable Diffusion 1.5 with a quarter of its channels, random weights."""
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


class Watch:
    """Times steps; reports pictures per second over all but the first steps."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.marks: list[tuple[float, float]] = []
        self.pictures: list[int] = []

    def step(self, pictures: int) -> None:
        self.marks.append((time.monotonic(), time.process_time()))
        self.pictures.append(pictures)

    def told(self) -> dict[str, float]:
        (wall, processor), (last_wall, last_processor) = self.marks[WARMUP - 1], self.marks[-1]
        pictures = sum(self.pictures[WARMUP:])
        return {
            "pictures_per_second": pictures / (last_wall - wall),
            "pictures_per_cpu_second": pictures / (last_processor - processor),
            "seconds_before": self.marks[0][0] - self.begun,
            "peak_memory_mb": _peak() / 1e6,
        }


def _peak() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def script(arguments: argparse.Namespace, watch: Watch) -> None:
    """diffusers' example script; steps are timed through its optimizer."""
    import runpy

    import torch

    real = torch.optim.AdamW.step

    def step(*told: Any, **more: Any) -> Any:
        done = real(*told, **more)
        watch.step(arguments.batch_size)
        return done

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        options = {
            "pretrained_model_name_or_path": base_of(arguments),
            "train_data_dir": arguments.data,
            "caption_column": "text",
            "resolution": arguments.resolution,
            "train_batch_size": arguments.batch_size,
            "max_train_steps": arguments.steps,
            "learning_rate": RATE,
            "lr_warmup_steps": 0,
            "rank": RANK,
            "seed": 0,
            "mixed_precision": "no",
            "checkpointing_steps": 10**9,
            "output_dir": out,
            "cache_dir": f"{out}/cache",
        }
        told = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        sys.argv = [str(arguments.script), *told, "--center_crop"]
        runpy.run_path(str(arguments.script), run_name="__main__")


def base_of(arguments: argparse.Namespace) -> str:
    return str(TINY) if arguments.base == "tiny" else str(arguments.base)


def loop(arguments: argparse.Namespace, watch: Watch) -> None:
    """One step of the script's loop."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from PIL import Image
    from transformers import CLIPTextModel, CLIPTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, size = base_of(arguments), arguments.resolution
    how = {"use_safetensors": True, "local_files_only": True, "torch_dtype": torch.float32}
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", local_files_only=True)
    text_encoder = CLIPTextModel.from_pretrained(
        base, subfolder="text_encoder", use_safetensors=True, local_files_only=True
    ).float()
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", **how)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", **how)
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    for model in (text_encoder, vae, unet):
        model.requires_grad_(False).to(device)
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS
    )
    unet.add_adapter(config)
    layers = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(layers, lr=RATE, weight_decay=1e-2)
    rows = list(_rows(arguments.data))

    def collate(batch: list[tuple[Path, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = []
        for path, _ in batch:
            image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
            array = torch.from_numpy(np.asarray(image, np.float32).copy())
            pictures.append(array.permute(2, 0, 1) / 127.5 - 1)
        ids = tokenizer(
            [caption for _, caption in batch],
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.stack(pictures), ids

    loader = torch.utils.data.DataLoader(
        rows, shuffle=True, collate_fn=collate, batch_size=arguments.batch_size, drop_last=True
    )
    unet.train()
    done = 0
    while done < arguments.steps:
        for pixels, ids in loader:
            latents = vae.encode(pixels.to(device)).latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            count = scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (len(latents),), device=device).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            hidden = text_encoder(ids.to(device), return_dict=False)[0]
            v = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(latents, noise, timesteps) if v else noise
            guess = unet(noisy, timesteps, hidden, return_dict=False)[0]
            loss = F.mse_loss(guess.float(), target.float(), reduction="mean")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(layers, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            watch.step(len(latents))
            done += 1
            if done == arguments.steps:
                return


def _rows(folder: Path) -> Iterator[tuple[Path, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        for name, caption, *_ in list(csv.reader(file))[1:]:
            yield folder / name, caption


def ours(cache: bool) -> Callable[[argparse.Namespace, Watch], None]:
    """llm-lora's own training, with or without its cache."""

    def train(arguments: argparse.Namespace, watch: Watch) -> None:
        from llm_lora.engines.image import engine as image
        from llm_lora.engines.image.train import order as picture_order
        from llm_lora.progress import Progress
        from llm_lora.recipe.image.blocks import ImageData, ImageLora, ImageTrain
        from llm_lora.recipe.image.recipe import ImageRecipe
        from llm_lora.run import Run
        from llm_lora.tasks.image import task as image_task

        recipe = ImageRecipe(
            task="image",
            name="benchmark",
            base=arguments.base,
            data=ImageData(
                train=arguments.data,
                resolution=arguments.resolution,
                bucket_step=8,
                caption_dropout=0.0,
                min_size=8,
                blur=0.0,
            ),
            lora=ImageLora(rank=RANK, alpha=RANK, targets="attention"),
            train=ImageTrain(
                epochs=10_000.0,
                max_steps=arguments.steps,
                learning_rate=RATE,
                schedule="constant",
                warmup=0.0,
                keep=0,
                batch_size=arguments.batch_size,
                precision="fp32",
                save_every=10**9,
                cache=cache,
            ),
        )
        prepared = image_task.prepare(recipe)
        order = picture_order.plan(recipe, prepared.dataset, arguments.resolution)

        def listener(progress: Progress) -> None:
            if progress.stage == "training" and progress.done == len(watch.marks) + 1:
                watch.step(order.shown[progress.done] - order.shown[progress.done - 1])

        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            # A cache of its own: what was encoded before must not make it look faster.
            os.environ["LLM_LORA_CACHE"] = str(out / "cache")
            image.fit(
                recipe,
                prepared.dataset,
                prepared.base,
                Run(out).places,
                listener=listener,
            )

    return train


def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one variant in this process."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ways = (script, loop, ours(cache=False), ours(cache=True))
    work = dict(zip(WAYS, ways, strict=True))
    watch = Watch()
    work[arguments.way](arguments, watch)
    return watch.told()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default=QUARTER, help="quarter, tiny, or a diffusers folder")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with metadata.csv")
    parser.add_argument("--resolution", type=int, help="pixels; 64 for tiny, else 256")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many is told")
    parser.add_argument("--script", type=Path, help="a copy of diffusers' example script")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.resolution = arguments.resolution or (64 if arguments.base == "tiny" else 256)
    return arguments


def quarter(folder: Path) -> None:
    """Write a random base: every width of Stable Diffusion 1.5 divided by four."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from llm_lora.base import configs as picture_configs

    configs = picture_configs.folder("sd1")

    def config(part: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((configs / part / "config.json").read_text())
        return {key: value for key, value in told.items() if not key.startswith("_")}

    def narrow(channels: list[int]) -> list[int]:
        return [one // 4 for one in channels]

    torch.manual_seed(0)
    unet, vae, text = config("unet"), config("vae"), config("text_encoder")
    unet |= {
        "block_out_channels": narrow(unet["block_out_channels"]),
        "cross_attention_dim": unet["cross_attention_dim"] // 4,
        "norm_num_groups": 8,
        "sample_size": 32,
    }
    vae |= {"block_out_channels": narrow(vae["block_out_channels"]), "norm_num_groups": 8}
    widths = ("hidden_size", "intermediate_size", "num_attention_heads", "projection_dim")
    text |= {key: text[key] // 4 for key in widths}
    StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=CLIPTokenizer.from_pretrained(configs / "tokenizer"),
        unet=UNet2DConditionModel(**unet),
        scheduler=DDIMScheduler.from_pretrained(configs / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main() -> None:
    """Run all variants in turn, and return the best result of each."""
    arguments = _arguments()
    if arguments.way:
        print(json.dumps(run(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options = [*sys.argv[1:], "--data", str(pictures(arguments.data, Path(folder) / "data"))]
        if arguments.base == QUARTER:
            quarter(Path(folder) / "base")
            options += ["--base", f"{folder}/base"]
        compare(arguments, options)


def pictures(source: Path, target: Path) -> Path:
    """Copy the pictures, with the column names that datasets' imagefolder requires."""
    target.mkdir()
    with (target / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "text"))
        for path, caption in _rows(source):
            shutil.copy(path, target / path.name)
            table.writerow((path.name, caption))
    return target


def compare(arguments: argparse.Namespace, options: list[str]) -> None:
    """Run every variant in its own processes, and print the results."""
    best: dict[str, dict[str, Any]] = {}
    ways = WAYS if arguments.script else WAYS[1:]
    offline = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    for _ in range(arguments.rounds):
        for way in ways:
            command = [sys.executable, __file__, *options, "--way", way]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **offline}, check=False
            )
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            told = json.loads(done.stdout.splitlines()[-1])
            if way not in best or told["pictures_per_second"] > best[way]["pictures_per_second"]:
                best[way] = told
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, "
          f"{arguments.resolution} pixels, batches of {arguments.batch_size}, fp32")  # fmt: skip
    first = next(iter(best.values()))
    for way, told in best.items():
        ratio = told["pictures_per_second"] / first["pictures_per_second"]
        processor = told["pictures_per_cpu_second"] / first["pictures_per_cpu_second"]
        print(
            f"{way:24} {told['pictures_per_second']:7.2f} pictures/s ({ratio:4.2f}x), "
            f"{told['pictures_per_cpu_second']:7.2f} per CPU second ({processor:4.2f}x), "
            f"{told['peak_memory_mb']:6.0f} MB, first step after {told['seconds_before']:5.1f} s"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
