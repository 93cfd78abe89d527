"""The architectures that are written as GGUF here: Llama, Qwen2 and Qwen3.

Names come from the `gguf` package. Features beyond plain attention are refused, never
left out: a file that loads and answers differently is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_lora.errors import UserError
from llm_lora.files import Json

_FAMILIES = {"LlamaForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2", "Qwen3ForCausalLM": "QWEN3"}
_CONVERTER = "use llama.cpp's own convert_hf_to_gguf.py (on a merged folder: llm-lora merge)"

OUTPUT = "lm_head.weight"
ROPE_FACTORS = "rope_freqs.weight"
_LEFT_OUT = ".rotary_emb.inv_freq"
"""Tensors of old checkpoints that are computed from the configuration anyway."""


def package() -> ModuleType:
    """The `gguf` package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError(
            "the package gguf is not installed", fix="install it: pip install 'llm-lora[gguf]'"
        ) from None
    found: ModuleType = gguf
    return found


def refuse(what: str, where: str) -> UserError:
    """The error for models that are not supported here."""
    return UserError(f"{what}, which is not supported for GGUF here", where=where, fix=_CONVERTER)


@dataclass(frozen=True)
class Family:
    """A model's shape in GGUF's terms; `heads` count queries, `key_heads` keys and values."""

    arch: int
    name: str
    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    context: int
    epsilon: float
    theta: float
    rope: Mapping[str, Any]
    tied: bool

    @classmethod
    def of(cls, config: Json, where: str) -> Family:
        """Read a model's config.json.

        Raises:
            UserError: another architecture, or one with unsupported features.
        """
        model = str((config.get("architectures") or ["unknown"])[0])
        if model not in _FAMILIES:
            raise refuse(f"the architecture is {model}", where)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        layers = set(config.get("layer_types") or ())
        odd = {
            f"hidden_act is {config.get('hidden_act')}": config.get("hidden_act") != "silu",
            "sliding windows are used": bool(
                config.get("use_sliding_window") or layers - {"full_attention"}
            ),
            f"rope scaling is {kind}": kind not in ("default", "linear", "llama3"),
            "only part of each head is rotated": rope.get("partial_rotary_factor", 1) != 1,
            "linear layers have biases": bool(
                config.get("attention_bias") or config.get("mlp_bias")
            ),
        }
        for what, is_so in odd.items():
            if is_so:
                raise refuse(what, where)
        gguf = package()
        arch = gguf.MODEL_ARCH[_FAMILIES[model]]
        heads = config["num_attention_heads"]
        return cls(
            arch=arch,
            name=gguf.MODEL_ARCH_NAMES[arch],
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            hidden=config["intermediate_size"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            epsilon=config["rms_norm_eps"],
            theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
            rope={
                "original_max_position_embeddings": config.get("original_max_position_embeddings"),
                **rope,
                "rope_type": kind,
            },
            tied=bool(config.get("tie_word_embeddings")),
        )

    def describe(self, writer: Any) -> None:
        """Write the shape into a file's metadata."""
        gguf = package()
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.hidden)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_heads)
        writer.add_key_length(self.head_width)
        writer.add_value_length(self.head_width)
        writer.add_rope_dimension_count(self.head_width)
        writer.add_rope_freq_base(self.theta)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_vocab_size(self.vocabulary)
        if self.rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self.rope["factor"])

    def left_out(self, name: str) -> bool:
        """Whether a tensor is left out of the file because it repeats another."""
        return name.endswith(_LEFT_OUT) or (self.tied and name == OUTPUT)

    def rename(self, name: str, where: str) -> str:
        """The GGUF name of a weight or a bias.

        Raises:
            UserError: this family has no such tensor.
        """
        names = package().get_tensor_name_map(self.arch, self.layers)
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise refuse(f"the model has a tensor {name}", where)
        return str(found)

    def reorder(self, name: str, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of a weight in the order of llama.cpp.

        For Llama, llama.cpp rotates neighbouring numbers of a head, transformers the first half
        with the second: rows of queries and keys are reordered within each head.
        """
        if self.name != "llama" or ".self_attn." not in name:
            return rows
        heads = {"q_proj": self.heads, "k_proj": self.key_heads}.get(name.split(".")[-2])
        if heads is None:
            return rows
        halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))

    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """Divisors of Llama 3's rotation frequencies, which llama.cpp reads as a tensor.

        Long waves are slowed down by `factor`, short ones unchanged, the rest interpolated
        (transformers/modeling_rope_utils.py, `_compute_llama3_parameters`).
        """
        if self.rope["rope_type"] != "llama3":
            return None
        factor = float(self.rope["factor"])
        low, high = float(self.rope["low_freq_factor"]), float(self.rope["high_freq_factor"])
        context = float(self.rope["original_max_position_embeddings"])
        exponents = np.arange(0, self.head_width, 2, dtype=np.float64) / self.head_width
        waves = 2 * math.pi * self.theta**exponents
        smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
