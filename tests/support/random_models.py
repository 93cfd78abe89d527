"""Small models with random weights, with or without an adapter of random weights on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 3,
    "bos_token_id": None,
    "eos_token_id": 2,
}


def make_model(
    folder: Path,
    kind: str = "qwen3",
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    tokenizer: Path | None = None,
    **config: Any,
) -> Path:
    """A complete model folder; its tokenizer is the embedded base's unless another is given."""
    tokenizer = tokenizer or bases.TINY
    for path in (*tokenizer.glob("tokenizer*.json"), *tokenizer.glob("*.jinja")):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    head = {} if kind == "qwen2" else {"head_dim": 16}
    settings = AutoConfig.for_model(kind, **{"vocab_size": 4096, **SIZES, **head, **config})
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        # As after training: norms are not all one, biases not all zero.
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def make_adapter(
    folder: Path, base: Path, targets: list[str] | str = "all-linear", rank: int = 4
) -> Path:
    """An adapter with random halves, saved by PEFT, with a manifest of llm-lora."""
    model = load(base)
    torch.manual_seed(7)
    tuned = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM"),
    )
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    template, _ = bases.chat_template(base)
    files.write_text(folder / adapters.TEMPLATE, template)
    found = bases.resolve(str(base))
    files.write_json(
        folder / adapters.MANIFEST,
        {
            "format": 1,
            "name": "random_one",
            "digest": adapters.digest(folder),
            "base": {"name": found.name, "digest": found.digest, "bits": 4},
            "schema_digest": None,
            "chat_template_digest": files.sha256(template),
            "system": None,
            "sampling": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 32},
        },
    )
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The model in fp32, as plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def with_adapter(base: Path, adapter: Path) -> Any:
    """Base and adapter in fp32, as plain PEFT loads them."""
    return PeftModel.from_pretrained(load(base), adapter).eval()


IDS = torch.tensor([[1, 20, 300, 77, 4000, 9, 15, 1234]])


def logits(model: Any) -> torch.Tensor:
    """A model's output for a few fixed tokens."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found
