"""Tiny random pipelines in the layouts of SD 1.5, SD 2.x and SDXL, as folders and single files.

The single file follows from the configuration alone: block counts and kinds decide the original
code's numbers. Sources: ldm/modules/diffusionmodules/openaimodel.py and model.py of CompVis'
stable-diffusion, sgm/modules of Stability AI's generative-models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

LENGTH = 16
"""Tokens of a caption, including start and end."""
SIDE = 32
"""Pixels."""

WORDS = "a the ink sketch style red blue green circle square star photo of on in".split()


def make(folder: Path, family: Literal["sd1", "sd2", "sdxl"] = "sd1", seed: int = 0) -> Path:
    """Write a random pipeline as a diffusers folder."""
    pipe(family, seed).save_pretrained(folder, safe_serialization=True)
    return folder


def pipe(family: str = "sd1", seed: int = 0) -> Any:
    """A random pipeline; no weight is zero, so that nothing is equal by chance."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(seed)
    xl = family == "sdxl"
    tokens = tokenizer()
    texts = {"text_encoder": text_encoder(tokens, 32, with_projection=False)}
    if xl:
        texts["text_encoder_2"] = text_encoder(tokens, 64, with_projection=True)
    across, down, up = "CrossAttn{}Block2D", "DownBlock2D", "UpBlock2D"
    down_attention, up_attention = across.format("Down"), across.format("Up")
    if xl:
        shape: dict[str, Any] = {
            "block_out_channels": (32, 64, 64),
            "down_block_types": (down, down_attention, down_attention),
            "up_block_types": (up_attention, up_attention, up),
            "transformer_layers_per_block": [1, 2, 3],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 6 * 8,
            "cross_attention_dim": 96,
        }
    else:
        shape = {
            "block_out_channels": (32, 64, 64, 64),
            "down_block_types": (*[down_attention] * 3, down),
            "up_block_types": (up, *[up_attention] * 3),
            "cross_attention_dim": 32,
        }
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        layers_per_block=2,
        attention_head_dim=2,
        norm_num_groups=32,
        use_linear_projection=family != "sd1",
        **shape,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        # Single files lack it; every reader assumes these values.
        scaling_factor=0.13025 if xl else 0.18215,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )
    for model in (unet, vae, *texts.values()):
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.1)
    common = {"unet": unet, "vae": vae, "scheduler": scheduler, "tokenizer": tokens, **texts}
    if xl:
        return StableDiffusionXLPipeline(**common, tokenizer_2=tokens, add_watermarker=False)
    return StableDiffusionPipeline(
        **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def tokenizer() -> Any:
    """A CLIP-style tokenizer over single characters and a few whole words."""
    from transformers import CLIPTokenizer

    signs = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    vocabulary = signs + [f"{sign}</w>" for sign in signs]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            parts = ["".join(merge), *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        model_max_length=LENGTH,
    )


def text_encoder(tokens: Any, width: int, *, with_projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        hidden_act="gelu" if with_projection else "quick_gelu",
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.eos_token_id,
    )
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)


def single_file(folder: Path, path: Path) -> Path:
    """A diffusers folder of SD 1.x or SDXL as one file in the original layout."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    xl = hasattr(pipe, "text_encoder_2")
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(pipe.unet).items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in _vae(pipe.vae).items()}
    clip = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    for name, tensor in pipe.text_encoder.state_dict().items():
        tensors[f"{clip}text_model.{name.removeprefix('text_model.')}"] = tensor
    if xl:
        for name, tensor in _open_clip(pipe.text_encoder_2).items():
            tensors[f"conditioner.embedders.1.model.{name}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet(unet: Any) -> dict[str, torch.Tensor]:
    config = unet.config
    per_level, levels = config.layers_per_block, len(config.block_out_channels)
    places = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    number = 0
    for level, kind in enumerate(config.down_block_types):
        for layer in range(per_level):
            number += 1
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if "CrossAttn" in kind:
                places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
        if level < levels - 1:
            number += 1
            places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    number = -1
    for level, kind in enumerate(config.up_block_types):
        attends = "CrossAttn" in kind
        for layer in range(per_level + 1):
            number += 1
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            if attends:
                places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        if level < levels - 1:
            end = f"output_blocks.{number}.{2 if attends else 1}.conv"
            places[f"up_blocks.{level}.upsamplers.0.conv"] = end
    found = {}
    for name, tensor in unet.state_dict().items():
        place = max((p for p in places if name.startswith(f"{p}.")), key=len)
        rest = name[len(place) + 1 :]
        if ".resnets." in place:
            part, _, end = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{end}"
        found[f"{places[place]}.{rest}"] = tensor
    return found


def _vae(vae: Any) -> dict[str, torch.Tensor]:
    levels = len(vae.config.block_out_channels)
    rules: list[tuple[str, Any]] = [
        (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (
            r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
            lambda match: f"decoder.up.{levels - 1 - int(match[1])}.block.{match[2]}",
        ),
        (
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0",
            lambda match: f"decoder.up.{levels - 1 - int(match[1])}.upsample",
        ),
        (r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]
    found = {}
    for name, tensor in vae.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        found[name] = tensor
    return found


def _open_clip(encoder: Any) -> dict[str, torch.Tensor]:
    state = encoder.state_dict()
    found = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": torch.tensor(1.0),
    }
    for layer in range(encoder.config.num_hidden_layers):
        theirs = f"text_model.encoder.layers.{layer}"
        ours = f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            parts = [state[f"{theirs}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{ours}.attn.in_proj_{end}"] = torch.cat(parts)
            for one, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{ours}.{one}.{end}"] = state[f"{theirs}.{other}.{end}"]
    return found
