"""A base loaded for training on a CPU does not hold on to the memory of freed logits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
