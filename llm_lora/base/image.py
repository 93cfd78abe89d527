"""Image bases: finding and checking the frozen pipeline that an adapter is trained on.

It is a folder in diffusers' layout, or one .safetensors file in the original layout of Stable
Diffusion. Only JSON files and the headers of safetensors files are read; nothing is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lora import files
from llm_lora.base import configs as picture_configs
from llm_lora.base import hub, single_file
from llm_lora.base import text as bases
from llm_lora.base.family import (
    CANNOT,
    CONFIGS,
    FAMILIES,
    NATIVE,
    NO_SHARES,
    Family,
    Prediction,
    of_unet,
    require_plain,
)
from llm_lora.errors import UserError
from llm_lora.files import ASSETS
from llm_lora.weights import header

TINY = ASSETS / "tiny_image"
"""The embedded base, named "tiny" in recipes."""

_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Components with weights, and how their file names begin."""

_PARTS = tuple(dict.fromkeys(part for traits in FAMILIES.values() for part in traits.parts))
_FILES = [
    bases.PIPELINE,
    *(f"{part}/*.{kind}" for part in _PARTS for kind in ("json", "txt", "safetensors")),
]
_HALVES = "*.fp16.*"
_OTHERS = ["*.non_ema.*", "*.non_ema-*"]
_PIPELINES = {traits.pipeline for traits in FAMILIES.values()}
_REFUSED = {
    "Inpaint": "this base is made for inpainting",
    "Img2Img": "this base is set up for image-to-image",
    "Upscale": "this base is an upscaler",
    "InstructPix2Pix": "this base edits pictures (its UNet takes 8 channels)",
    "Depth2Img": "this base generates from depth maps",
    "ControlNet": "this base is steered by a ControlNet",
    "StableDiffusion3": "this is Stable Diffusion 3",
    "Flux": "this is FLUX",
}
"""Known pipelines that cannot be trained, by a part of their class name."""

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
_OTHER_NOISE = ("EDM", "FlowMatch")
"""Class name prefixes of schedulers whose noise levels do not mix signal and noise by shares."""

_FOLDER_FIX = "name the folder that holds model_index.json, unet/, vae/, …"


@dataclass(frozen=True)
class PictureBase:
    """A base that can be trained.

    Attributes:
        name: its name in the recipe.
        path: a complete folder in diffusers' layout, or one file in the original layout.
        config: a folder in diffusers' layout with the configurations and tokenizers: `path`, or
            for a single file another one, without weights.
        digest: identifies weights, configurations and tokenizers.
        family: the layout of its UNet and text encoders.
        resolution: side in pixels of the square size that it was trained at.
        prediction: what its UNet predicts.
        zero_snr: whether a single file is marked as trained with zero terminal SNR; folders state
            it in their scheduler's configuration.
        variant: "fp16" if a folder has only half-precision weights.
        revision: the commit on the hub, if it came from there.
    """

    name: str
    path: Path
    config: Path
    digest: str
    family: Family
    resolution: int
    prediction: Prediction
    zero_snr: bool
    variant: str | None
    revision: str | None
    embedded: bool

    @property
    def single_file(self) -> bool:
        """Whether it is one file in the original layout."""
        return self.path != self.config


def resolve(
    base: str,
    revision: str | None = None,
    *,
    prediction: str = "auto",
    download: bool = True,
) -> PictureBase:
    """Find a base and check that it can be trained.

    Args:
        base: "tiny" (embedded), a folder, a .safetensors file, or the name of a model on the hub
            ("owner/name").
        revision: branch, tag or commit on the hub; the main branch if None.
        prediction: what the UNet predicts, `epsilon` or `v`, overriding the base's own
            configuration; `auto` uses that configuration.
        download: whether a model may be downloaded; if not, it must be in the local cache.

    Raises:
        UserError: it was not found (offline, wrong name, no access), or cannot be used: pickled or
            damaged weights, a text model, or an unsupported family or UNet.
    """
    if base == "tiny":
        return _inspect("tiny", TINY, None, prediction, embedded=True)
    path = Path(base).expanduser()
    if path.is_dir():
        return _inspect(base, path.resolve(), None, prediction)
    if ".gguf" in base.lower() or "ggml" in base.lower():
        raise single_file.ggml(base)
    if path.is_file():
        return _single_file(base, path.resolve(), prediction)
    if not hub.HUB_ID.fullmatch(base):
        raise UserError(
            "no such folder or file",
            where=base,
            fix="check the path, or name a model on the hub as owner/name",
        )
    snapshot = _fetch(base, revision, local_only=not download)
    return _inspect(base, snapshot, hub.commit(snapshot) or revision, prediction)


def _fetch(name: str, revision: str | None, *, local_only: bool) -> Path:
    """Download full-precision weights if there are any; both precisions would be too much."""
    folder = hub.fetch(name, revision, _FILES, without=[_HALVES, *_OTHERS], local_only=local_only)
    if not local_only and not any((folder / "unet").glob("*.safetensors")):
        folder = hub.fetch(name, revision, _FILES, without=_OTHERS, local_only=False)
    return folder


def _single_file(name: str, path: Path, prediction: str) -> PictureBase:
    found = single_file.inspect(name, path, prediction)
    beside = path.with_suffix("")
    config = found.config((beside, TINY, CONFIGS / found.family))
    if config is None:
        raise UserError(
            "the shapes of its UNet match no known configuration",
            where=name,
            fix=f"put its configuration (model_index.json, unet/config.json, …) into {beside}/",
        )
    side = found.resolution
    if config == CONFIGS / found.family:
        config = picture_configs.folder(found.family)
        if found.family == "sd2" and found.prediction == "epsilon":
            # The shipped configuration is that of 768 pixels, which predicts v.
            side = side or 512
    return PictureBase(
        name=name,
        path=path,
        config=config,
        digest=header.sampled_sha256(path),
        family=found.family,
        resolution=side or _resolution(config, found.family),
        prediction=found.prediction,
        zero_snr=found.zero_snr,
        variant=None,
        revision=None,
        embedded=False,
    )


def _inspect(
    name: str, folder: Path, revision: str | None, prediction: str, *, embedded: bool = False
) -> PictureBase:
    index = _index(name, folder)
    unet = bases.read_config(folder / "unet") if (folder / "unet").is_dir() else {}
    family = _family(name, folder, str(index.get("_class_name")), unet)
    parts = FAMILIES[family].parts
    absent = [part for part in parts if not (folder / part).is_dir()]
    if absent:
        raise UserError(
            f"no {', '.join(absent)} in this folder", where=str(folder), fix="copy it completely"
        )
    weights, variant = _weights(folder, [part for part in parts if part in _WEIGHTS])
    return PictureBase(
        name=name,
        path=folder,
        config=folder,
        digest=_digest(folder, parts, weights),
        family=family,
        resolution=_resolution(folder, family),
        prediction=_prediction(name, folder, prediction),
        zero_snr=False,
        variant=variant,
        revision=revision,
        embedded=embedded,
    )


def _index(name: str, folder: Path) -> dict[str, Any]:
    """The pipeline index of a folder; refuses a folder that is not an image base."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "this is an adapter, not a base",
            where=name,
            fix="name the base it was trained on; to train it on: train.start_from",
        )
    if (folder / bases.PIPELINE).is_file():
        return files.read_object(folder / bases.PIPELINE)
    if list(folder.glob("*.gguf")):
        raise single_file.ggml(name)
    config = bases.read_config(folder) if (folder / bases.CONFIG).is_file() else {}
    kind = str(config.get("_class_name", ""))
    if "architectures" in config or "model_type" in config:
        what = f"this is a text model ({(config.get('architectures') or ['unknown'])[0]})"
        raise UserError(what, where=name, fix="set task: text, or name a Stable Diffusion model")
    if kind.startswith("ControlNet"):
        what = "this is a ControlNet, which steers a base"
        raise UserError(what, where=name, fix="name the base that it steers")
    if kind:
        raise UserError(f"this is only a part of a base ({kind})", where=name, fix=_FOLDER_FIX)
    single = sorted(folder.glob("*.safetensors"))
    raise UserError(
        "no model_index.json: this folder is not in diffusers' layout",
        where=str(folder),
        fix=f"name the file itself, such as {single[0]}" if single else _FOLDER_FIX,
    )


def _family(name: str, folder: Path, pipeline: str, unet: dict[str, Any]) -> Family:
    for part, what in _REFUSED.items():
        if part in pipeline:
            reason = f"{what}: {CANNOT}" if part in ("StableDiffusion3", "Flux") else what
            raise UserError(reason, where=name, fix=NATIVE)
    if pipeline not in _PIPELINES:
        # Others, such as latent consistency models, have the same components but work differently.
        raise UserError(f"unknown pipeline class {pipeline}", where=name, fix=NATIVE)
    if not unet:
        raise UserError("no unet in this folder", where=str(folder), fix="copy it completely")
    if "quantization_config" in unet:
        raise UserError(
            "this base is already quantised, so it cannot be trained",
            where=name,
            fix="name the unquantised original",
        )
    require_plain(name, unet.get("in_channels"))
    family = of_unet(unet)
    if family == "sdxl" and not (folder / "text_encoder").is_dir():
        raise single_file.refiner(name)
    return family


def _weights(folder: Path, parts: Sequence[str]) -> tuple[list[Path], str | None]:
    """The complete weight files of all components, and their variant."""
    for variant in (None, "fp16"):
        found = {part: list(_files_of(folder / part, _WEIGHTS[part], variant)) for part in parts}
        if all(found.values()):
            weights = [path for part in parts for path in found[part]]
            for path in weights:
                header.safetensors_header(path)
            return weights, variant
    lacking = next(part for part in parts if not list((folder / part).glob("*.safetensors")))
    if any(list((folder / lacking).glob(pattern)) for pattern in ("*.bin", "*.pt", "*.ckpt")):
        raise UserError(
            "only pickled weights (.bin), which may run code on loading",
            where=str(folder / lacking),
            fix="choose a revision or a copy of the model with safetensors",
        )
    raise UserError(
        "no safetensors weights", where=str(folder / lacking), fix="copy the folder whole"
    )


def _files_of(folder: Path, stem: str, variant: str | None) -> Iterator[Path]:
    """The files of one component in one variant; none if it lacks the variant."""
    dotted = f".{variant}" if variant else ""
    whole = folder / f"{stem}{dotted}.safetensors"
    index = folder / f"{stem}.safetensors.index{dotted}.json"
    if whole.is_file():
        yield whole
    elif index.is_file():
        shards = sorted(set(files.read_object(index).get("weight_map", {}).values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise UserError(
                    f"a weight file is missing: {shard}",
                    where=str(folder),
                    fix="download or copy the model again",
                )
            yield folder / shard


def _resolution(config: Path, family: Family) -> int:
    """The side of the UNet's latents times the VAE's downscaling factor."""
    latent = bases.read_config(config / "unet").get("sample_size")
    levels = bases.read_config(config / "vae").get("block_out_channels")
    if isinstance(latent, int) and isinstance(levels, list):
        return int(latent * 2 ** (len(levels) - 1))
    return FAMILIES[family].resolution


def _prediction(name: str, folder: Path, wanted: str) -> Prediction:
    path = folder / "scheduler" / "scheduler_config.json"
    told = files.read_object(path)
    kind = str(told.get("_class_name", ""))
    if kind.startswith(_OTHER_NOISE) or "sigma_data" in told:
        raise UserError(NO_SHARES.format(kind=kind), where=name, fix=NATIVE)
    if wanted != "auto":
        return single_file.as_prediction(wanted)
    said = told.get("prediction_type", "epsilon")
    if said not in _PREDICTIONS:
        raise UserError(
            f"the base predicts {said}; training supports epsilon and v_prediction",
            where=str(path),
            fix=NATIVE,
        )
    return _PREDICTIONS[said]


def _digest(folder: Path, parts: Sequence[str], weights: Sequence[Path]) -> str:
    """Digest of the configuration, tokenizers and weights of all components."""
    small = [folder / bases.PIPELINE]
    for part in parts:
        small += sorted(
            path for kind in ("json", "txt") for path in (folder / part).glob(f"*.{kind}")
        )
    total = hashlib.sha256()
    for path in (*small, *weights):
        name = path.relative_to(folder).as_posix()
        total.update(f"{name} {path.stat().st_size} {header.sampled_sha256(path)}\n".encode())
    return total.hexdigest()
