"""Makes llm_lora/assets/picture_configs: configurations that single-file bases do not contain.

    python pretraining/picture_configs.py bpe_simple_vocab_16e6.txt.gz

A single file has only weights. Offline use also needs its configuration and tokenizer: for each
family, the JSON files of a folder in diffusers' layout. The numbers are those of the published
models; `tests/base/test_picture_base.py` builds each part without
memory and compares its parameters with the published counts.

The tokenizer of all of them is CLIP's, which OpenAI published under the MIT licence; every package
that runs CLIP brings the file (open_clip_torch among them). Its merges are kept once, and
`llm_lora/base/configs.py` makes tokenizer folders of them.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "llm_lora" / "assets" / "picture_configs"
MERGES = 49152 - 256 - 2
"""Number of merges that CLIP uses: its vocabulary less the bytes (twice) and two special tokens."""

CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "num_train_timesteps": 1000}  # fmt: skip


def unet(down: list[str], **more: Any) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "center_input_sample": False,
        "down_block_types": [kind.format("Down") for kind in down],
        "up_block_types": [kind.format("Up") for kind in reversed(down)],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        **more,
    }


def vae(sample_size: int, scaling_factor: float = 0.18215, **more: Any) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        **more,
    }


def text(
    size: int, layers: int, heads: int, act: str, projection: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": size,
        "intermediate_size": size * 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": projection,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "layer_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
        **more,
    }


CLIP_L = text(768, 12, 12, "quick_gelu", 768)
PNDM = {"_class_name": "PNDMScheduler", **BETAS, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
        "prediction_type": "epsilon"}  # fmt: skip
DDIM_V = {"_class_name": "DDIMScheduler", **BETAS, "set_alpha_to_one": False, "steps_offset": 1,
          "clip_sample": False, "prediction_type": "v_prediction"}  # fmt: skip
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "steps_offset": 1,
         "timestep_spacing": "leading", "interpolation_type": "linear", "use_karras_sigmas": False,
         "set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False,
         "prediction_type": "epsilon"}  # fmt: skip
SD = [CROSS, CROSS, CROSS, PLAIN]
SD_WIDTHS = [320, 640, 1280, 1280]

FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": {
        "unet": unet(SD, block_out_channels=SD_WIDTHS, attention_head_dim=8,
                     cross_attention_dim=768, sample_size=64),
        "vae": vae(512),
        "text_encoder": CLIP_L,
        "scheduler": PNDM,
    },
    "sd2": {
        "unet": unet(SD, block_out_channels=SD_WIDTHS, attention_head_dim=[5, 10, 20, 20],
                     cross_attention_dim=1024, use_linear_projection=True, sample_size=96),
        "vae": vae(768),
        "text_encoder": text(1024, 23, 16, "gelu", 512),
        "scheduler": DDIM_V,
    },
    "sdxl": {
        "unet": unet([PLAIN, CROSS, CROSS], block_out_channels=[320, 640, 1280],
                     attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10],
                     cross_attention_dim=2048, use_linear_projection=True, sample_size=128,
                     addition_embed_type="text_time", addition_time_embed_dim=256,
                     projection_class_embeddings_input_dim=2816),
        "vae": vae(1024, 0.13025, force_upcast=True),
        "text_encoder": CLIP_L,
        "text_encoder_2": text(1280, 32, 20, "gelu", 1280,
                               architectures=["CLIPTextModelWithProjection"]),
        "scheduler": EULER,
    },
}  # fmt: skip

PADDED_WITH = {"sd1": ["<|endoftext|>"], "sd2": ["!"], "sdxl": ["<|endoftext|>", "!"]}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer(padding: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": padding,
    }


def index(family: str, parts: dict[str, Any]) -> dict[str, Any]:
    pipeline: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline"
        if family == "sdxl"
        else "StableDiffusionPipeline"
    }
    for part, config in parts.items():
        library = "transformers" if part.startswith("text") else "diffusers"
        kind = config["architectures"][0] if library == "transformers" else config["_class_name"]
        pipeline[part] = [library, kind]
    for number in range(len(PADDED_WITH[family])):
        pipeline["tokenizer_2" if number else "tokenizer"] = ["transformers", "CLIPTokenizer"]
    if family == "sdxl":
        return {**pipeline, "force_zeros_for_empty_prompt": True}
    return {**pipeline, "safety_checker": [None, None], "feature_extractor": [None, None]}


def main(source: Path) -> None:
    merges = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    shutil.rmtree(TARGET, ignore_errors=True)
    for family, parts in FAMILIES.items():
        folder = TARGET / family
        write(folder / "model_index.json", index(family, parts))
        for part, config in parts.items():
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            write(folder / part / name, config)
        for number, padding in enumerate(PADDED_WITH[family]):
            name = "tokenizer_2" if number else "tokenizer"
            write(folder / name / "tokenizer_config.json", tokenizer(padding))
    (TARGET / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
