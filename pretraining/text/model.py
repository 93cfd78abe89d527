"""The tiny model and the optimizer of its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from pretraining.text.tokenizer import CONTEXT, PAD, TURN_END, special


def new_model(tokenizer_file: Path, seed: int) -> Qwen3ForCausalLM:
    """A model with random weights that fits the tokenizer."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=384,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=None,
        eos_token_id=special(tokenizer, TURN_END),
        pad_token_id=special(tokenizer, PAD),
    )
    # Compiled, plain attention is faster on a CPU than torch's own; nothing of this is saved.
    return Qwen3ForCausalLM._from_config(config, attn_implementation="eager")


def save(model: Qwen3ForCausalLM, weights: dict[str, Tensor], folder: Path) -> None:
    """Write configuration and bf16 weights; readers see either the complete old or new weights."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(weights)
    config = model.config
    copy.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    fresh = folder / "new"
    copy.bfloat16().save_pretrained(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)  # safetensors keeps its files to the owner
        file.replace(folder / file.name)
    fresh.rmdir()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (K. Jordan and others, 2024).

    For the matrices inside the layers; it learns this model in far fewer tokens than AdamW.
    Matrices of one shape are handled together.
    """

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = [self._momentum(p, group["momentum"]) for p in parameters]
                scale = max(1.0, rows / columns) ** 0.5
                steps = _orthogonal(torch.stack(updates))
                for parameter, change in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(parameter.grad, 1 - momentum)
        ahead: Tensor = parameter.grad.lerp(state["average"], momentum)
        return ahead


def _orthogonal(updates: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, roughly: five Newton-Schulz steps in bf16."""
    x = updates.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    if tall:
        x = x.mT
    steps: Tensor = x.float()
    return steps
