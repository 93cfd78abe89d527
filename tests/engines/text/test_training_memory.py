"""Memory of training on a CPU: flat over steps of varied lengths; freed logits are handed back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT, TESTS

BATCH, STEPS = 8, 16
VOCABULARY, LONGEST = 49152, 160
LOGITS = BATCH * LONGEST * VOCABULARY * 4
"""Bytes of the largest tensor of a step, in fp32: memory held after a step varies by less."""

RECIPE = f"""
task: text
base: base
data: {{train: unread.jsonl, held_out: other.jsonl}}
train: {{batch_size: {BATCH}, max_steps: {STEPS}, evaluate_every: {STEPS}, batching: grouped}}
"""


def train(folder: Path) -> None:
    """Train on answers of varied lengths, and print the resident bytes after every step."""
    import torch
    from support import random_models

    from llm_lora.base import text as bases
    from llm_lora.base.chat import Chat
    from llm_lora.engines.text import engine
    from llm_lora.example import Message, make_example
    from llm_lora.progress import Progress
    from llm_lora.recipe import loading as recipes
    from llm_lora.run import Run

    # A small model with the logits of a real vocabulary, which differ in size from step to step.
    model = random_models.make_model(
        folder / "base",
        "llama",
        dtype=torch.bfloat16,
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        initializer_range=0.02,
    )
    (folder / "recipe.yaml").write_text(RECIPE)
    base = bases.resolve(str(model))
    chat = Chat.load(base.path)
    numbers = random.Random(0)
    examples = []
    while len(examples) < STEPS * BATCH:
        words = " ".join(str(numbers.randrange(1000)) for _ in range(numbers.randrange(1, 50)))
        example = make_example((Message("user", "Count."),), words, part=None, where="")
        if len(chat.encode(example).input_ids) <= LONGEST:
            examples.append(example)

    def tell(progress: Progress) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print("resident", pages * os.sysconf("SC_PAGE_SIZE"), flush=True)

    engine.fit(
        recipes.load(folder / "recipe.yaml"),
        examples,
        examples[:BATCH],
        base,
        chat,
        Run(folder / "run").places,
        listener=tell,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_memory_stays_flat_over_batches_of_varied_lengths(tmp_path: Path) -> None:
    # In a process of its own, whose memory no other test has touched.
    code = "import sys, pathlib, test_training_memory as t; t.train(pathlib.Path(sys.argv[1]))"
    places = [str(one) for one in (Path(__file__).parent, TESTS, ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    resident = [int(line.split()[1]) for line in lines if line.startswith("resident ")]
    assert len(resident) > STEPS
    # With allocator thresholds of a gigabyte it varied by 1.35 GB.
    assert max(resident) - min(resident) < LOGITS, [round(one / 1e6) for one in resident]


# As in steps of training: tensors as large as logits of 49k tokens, of another size each time, and
# small ones between them that live on.
_STEPS = """
import os
from pathlib import Path

import torch

from llm_lora.base import text as bases
from llm_lora.engines.shared import loading


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


loading.load_base(bases.resolve("tiny"), bits=4, precision="auto")
before = resident()
kept = []
for step in range(6):
    logits = []
    for i in range(4):
        logits.append(torch.ones(30_000_000 + (7 * step + 3 * i) % 11 * 1_000_000))
        kept.append(torch.ones(1000))
    del logits
    print("held", resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_freed_logits_are_handed_back_after_every_step() -> None:
    # In a process of its own: how glibc keeps memory holds for a whole process.
    done = subprocess.run(
        [sys.executable, "-c", _STEPS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    held = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("held")]
    assert len(held) == 6
    assert max(held) < 60e6, held  # Half of one of the tensors.
