"""Benchmark of QLoRA steps on the tiny base: tokens a second, processor seconds, page faults.

Each variant runs in its own process, because peak memory is that of a whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

from llm_lora.example import Example

ROOT = Path(__file__).parent.parent
VARIANTS = {"nf4": 4, "bf16": 16}
EXAMPLES = 160


def measure(bits: int, batch_size: int) -> dict[str, float]:
    """Forward and backward over 160 medical examples, after two warm-up steps."""
    import torch
    from peft import LoraConfig, get_peft_model

    from llm_lora.base import text as bases
    from llm_lora.base.chat import Chat
    from llm_lora.data.text import formats
    from llm_lora.engines.shared import loading
    from llm_lora.engines.text import batches

    base = bases.resolve("tiny")
    chat = Chat.load(base.path)
    path = ROOT / "data_templates" / "medical_qa" / "train.jsonl"
    rows: list[batches.Row] = []
    for example in formats.read(path):
        if isinstance(example, Example) and len(rows) < EXAMPLES:
            encoded = chat.encode(example)
            pairs = zip(encoded.input_ids, encoded.mask, strict=True)
            labels = [token if scored else batches.IGNORED for token, scored in pairs]
            rows.append({"input_ids": list(encoded.input_ids), "labels": labels})
    lengths = [len(row["input_ids"]) for row in rows]
    order = batches.plan(lengths, epochs=1, batch_size=batch_size, grouped=True, seed=0)
    model = loading.load_base(base, bits=bits, precision="auto").model
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)

    def step(indices: list[int]) -> int:
        batch = batches.pad([rows[i] for i in indices], chat.pad_id)
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        return int(batch["attention_mask"].sum())

    for indices in order[:2]:
        step(indices)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    tokens = sum(step(indices) for indices in order)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "tokens_per_second": round(tokens / seconds),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_gb": round(after.ru_maxrss / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--variant", choices=VARIANTS, help="measure one, in this process")
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(measure(VARIANTS[given.variant], given.batch_size)))
        return
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    for name in VARIANTS:
        command = [sys.executable, __file__, "--variant", name]
        command += ["--batch-size", str(given.batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:8} {done.stdout.splitlines()[-1]}")


if __name__ == "__main__":
    main()
