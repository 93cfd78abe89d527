"""kohya's names of every module that its default LoRA adapts, written down from the architectures.

Nothing here comes from the package under test: the lists follow from the published configurations
of Stable Diffusion 1.5 and SDXL (blocks, layers per block, transformer depth) and from the two
naming rules, spelled out by hand.
"""

from __future__ import annotations

# A transformer block holds two attentions of four projections, and a feed-forward of two.
IN_BLOCK = [
    "attn1_to_q",
    "attn1_to_k",
    "attn1_to_v",
    "attn1_to_out_0",
    "attn2_to_q",
    "attn2_to_k",
    "attn2_to_v",
    "attn2_to_out_0",
    "ff_net_0_proj",
    "ff_net_2",
]
IN_TEXT_LAYER = [
    "self_attn_q_proj",
    "self_attn_k_proj",
    "self_attn_v_proj",
    "self_attn_out_proj",
    "mlp_fc1",
    "mlp_fc2",
]

# Stable Diffusion 1.5: three levels with attention down (two each), one in the middle, three up
# (three each); one transformer block each. Two projections around it.
SD1_PLACES = [
    "down_blocks_0_attentions_0",
    "down_blocks_0_attentions_1",
    "down_blocks_1_attentions_0",
    "down_blocks_1_attentions_1",
    "down_blocks_2_attentions_0",
    "down_blocks_2_attentions_1",
    "mid_block_attentions_0",
    "up_blocks_1_attentions_0",
    "up_blocks_1_attentions_1",
    "up_blocks_1_attentions_2",
    "up_blocks_2_attentions_0",
    "up_blocks_2_attentions_1",
    "up_blocks_2_attentions_2",
    "up_blocks_3_attentions_0",
    "up_blocks_3_attentions_1",
    "up_blocks_3_attentions_2",
]

# SDXL in the original code's numbering: (place, transformer blocks). No attention at full size; two
# deep at half size, ten deep at a quarter and in the middle.
SDXL_PLACES = [
    ("input_blocks_4_1", 2),
    ("input_blocks_5_1", 2),
    ("input_blocks_7_1", 10),
    ("input_blocks_8_1", 10),
    ("middle_block_1", 10),
    ("output_blocks_0_1", 10),
    ("output_blocks_1_1", 10),
    ("output_blocks_2_1", 10),
    ("output_blocks_3_1", 2),
    ("output_blocks_4_1", 2),
    ("output_blocks_5_1", 2),
]

# The same eleven places in the numbering of diffusers, in the same order.
SDXL_DIFFUSERS = [
    "down_blocks.1.attentions.0",
    "down_blocks.1.attentions.1",
    "down_blocks.2.attentions.0",
    "down_blocks.2.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
    "up_blocks.0.attentions.2",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
    "up_blocks.1.attentions.2",
]


def sd1_unet() -> set[str]:
    """192 names."""
    inner = [f"transformer_blocks_0_{part}" for part in IN_BLOCK]
    parts = ["proj_in", "proj_out", *inner]
    return {f"lora_unet_{place}_{part}" for place in SD1_PLACES for part in parts}


def sd1_text(prefix: str = "lora_te", layers: int = 12) -> set[str]:
    """72 names."""
    return {
        f"{prefix}_text_model_encoder_layers_{layer}_{part}"
        for layer in range(layers)
        for part in IN_TEXT_LAYER
    }


def sdxl_unet() -> set[str]:
    """722 names: 11 x 2 projections and 70 transformer blocks of ten."""
    found = set()
    for place, depth in SDXL_PLACES:
        found |= {f"lora_unet_{place}_proj_in", f"lora_unet_{place}_proj_out"}
        for block in range(depth):
            found |= {f"lora_unet_{place}_transformer_blocks_{block}_{part}" for part in IN_BLOCK}
    return found


def sdxl_text() -> set[str]:
    """264 names: 12 layers of CLIP ViT-L and 32 of OpenCLIP ViT-bigG."""
    return sd1_text("lora_te1", 12) | sd1_text("lora_te2", 32)
