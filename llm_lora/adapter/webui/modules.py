"""Module names of Stable Diffusion adapters: diffusers' paths, and those of WebUIs.

Here a module is named by its component and its path in diffusers:

    unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q
    text_encoder.text_model.encoder.layers.3.self_attn.q_proj

kohya's sd-scripts, whose layout WebUIs (AUTOMATIC1111, ComfyUI, Forge) read, replaces the dots by
underscores, and for SDXL names the UNet's modules as in the original code:

    lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha

Sources: networks/lora.py and library/sdxl_original_unet.py of kohya-ss/sd-scripts,
extensions-builtin/Lora/networks.py of AUTOMATIC1111/stable-diffusion-webui.
"""

from __future__ import annotations

import re

from llm_lora.base import FAMILIES, Family

# Valid module names, to detect typing mistakes and adapters of other models.
_INNER = (
    r"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
    r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
)
_UNET = re.compile(
    rf"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.({_INNER})"
    r"|down_blocks\.\d+\.downsamplers\.0\.conv|up_blocks\.\d+\.upsamplers\.0\.conv"
    r"|conv_in|conv_out|(time|add)_embedding\.linear_[12]"
)
_TEXT = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")
# Parts of module names that contain an underscore; all others end at one.
_WORDS = re.compile(
    r"(?:down|up|mid|transformer|input|middle|output)_blocks?|time_emb(?:_proj|edding|ed)"
    r"|add_embedding|label_emb|(?:to|in|out|conv|proj)_(?:q|k|v|out|in|shortcut|layers)|linear_[12]"
    r"|emb_layers|skip_connection|text_model|self_attn|(?:q|k|v|out)_proj|[a-z]+\d*|\d+"
)
# The original code's names for the parts of a residual block.
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
# Front ends assume that every level has two blocks, and one for resampling.
_LEVEL = 3


def stem(module: str, family: Family) -> str:
    """kohya's name of a module.

    Raises:
        ValueError: this family has no such module.
    """
    component, _, path = module.partition(".")
    if not _exists(component, path, family):
        raise ValueError(module)
    if component == "unet" and FAMILIES[family].original_names:
        path = _original(path)
    return f"{FAMILIES[family].prefixes[component]}_{path.replace('.', '_')}"


def module(stem: str, family: Family) -> str:
    """The inverse of `stem`; for SDXL it also accepts diffusers' names with underscores.

    Raises:
        ValueError: this family has no such module.
    """
    for component, prefix in FAMILIES[family].prefixes.items():
        if not stem.startswith(f"{prefix}_"):
            continue
        rest = stem[len(prefix) + 1 :]
        path = ".".join(_WORDS.findall(rest))
        if path.replace(".", "_") != rest:
            break
        if component == "unet" and FAMILIES[family].original_names:
            path = _from_original(path)
        if _exists(component, path, family):
            return f"{component}.{path}"
    raise ValueError(stem)


def _exists(component: str, path: str, family: Family) -> bool:
    if component not in FAMILIES[family].prefixes:
        return False
    if component != "unet":
        return _TEXT.fullmatch(path) is not None
    known = FAMILIES[family].takes_sizes or not path.startswith("add_")
    return known and _UNET.fullmatch(path) is not None


def _original(path: str) -> str:
    """The original code's name of a module of SDXL's UNet (three levels)."""
    if path in _ENDS:
        return _ENDS[path]
    block, *parts = path.split(".")
    if block == "mid_block":
        kind, number, *leaf = parts
        place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(number)}"
        return ".".join([place, *_leaf(kind, leaf)])
    level = int(parts[0])
    kind, number, *leaf = parts[1:]
    down = block == "down_blocks"
    side = "input_blocks" if down else "output_blocks"
    if kind == "downsamplers":
        return f"{side}.{_LEVEL * (level + 1)}.0.op"
    if kind == "upsamplers":
        # It follows a residual block and attention, which every level with one has.
        return f"{side}.{_LEVEL * level + _LEVEL - 1}.2.conv"
    at = _LEVEL * level + int(number) + (1 if down else 0)
    return ".".join([f"{side}.{at}.{1 if kind == 'attentions' else 0}", *_leaf(kind, leaf)])


def _leaf(kind: str, leaf: list[str]) -> list[str]:
    return [_RESNET[".".join(leaf)]] if kind == "resnets" else leaf


def _from_original(path: str) -> str:
    """diffusers' name of a module of SDXL's UNet; diffusers' own names are unchanged."""
    for ours, theirs in _ENDS.items():
        if path == theirs:
            return ours
    match = re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)(?:\.(\d+))?(?:\.(.+))?", path)
    if match is None:
        return path
    side, leaf = match[1], match[4] or ""
    if side == "middle":
        # `middle_block.1.…` has one number fewer.
        number, leaf = int(match[2]), ".".join(part for part in (match[3], match[4]) if part)
        if number == 1:
            return f"mid_block.attentions.0.{leaf}"
        return f"mid_block.resnets.{number // 2}.{_from_leaf(leaf)}"
    number, part = int(match[2]), match[3]
    level, index = divmod(number - 1 if side == "input" else number, _LEVEL)
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if leaf == "op":
        return f"{block}.downsamplers.0.conv"
    if leaf == "conv":
        return f"{block}.upsamplers.0.conv"
    if part == "1":
        return f"{block}.attentions.{index}.{leaf}"
    return f"{block}.resnets.{index}.{_from_leaf(leaf)}"


def _from_leaf(leaf: str) -> str:
    return {theirs: ours for ours, theirs in _RESNET.items()}.get(leaf, leaf)
