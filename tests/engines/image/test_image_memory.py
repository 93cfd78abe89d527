"""Image training that runs out of memory: the steps of saving memory, messages, and the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import image_runs
from support.image_runs import stop_after, train

from llm_lora.adapter import folder as adapters
from llm_lora.errors import UserError
from llm_lora.progress import Interrupted
from llm_lora.weights import arrays

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_runs.make(tmp_path_factory.mktemp("image"))


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, checkpointed: int) -> list[int]:
    """A UNet with a limited batch size, which is larger when activations are recomputed."""
    from diffusers import UNet2DConditionModel

    real, tried = UNet2DConditionModel.forward, []

    def forward(self: Any, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        limit = checkpointed if self.is_gradient_checkpointing else most
        if self.training and len(sample) > limit:
            tried.append(len(sample))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, sample, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    return tried


def test_out_of_memory_is_climbed_down_from_and_said(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe, tmp_path / "enough")
    tried = run_out_of_memory(monkeypatch, most=0, checkpointed=1)
    told: list[str] = []
    fit = train(recipe, tmp_path / "little", "train.cache=false", tell=told.append)
    assert tried == [4, 4, 4, 2]
    steps = [text for text in told if text.startswith("out of memory")]
    assert [text.split(": ")[1].split(" ")[0] for text in steps] == [
        "gradient",
        "pictures",
        "batches",
        "batches",
    ]
    assert "in 4 parts of 1" in steps[-1]
    assert set(steps) <= set(fit.decisions)
    one, other = (
        arrays.read(tmp_path / name / "adapter" / adapters.WEIGHTS)[0]
        for name in ("little", "enough")
    )
    for key in one:
        assert np.allclose(one[key], other[key], atol=2e-3), key


def test_the_end_of_the_ladder_is_told(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_of_memory(monkeypatch, most=0, checkpointed=0)
    with pytest.raises(UserError, match="out of memory") as error:
        train(recipe, tmp_path)
    assert "everything that saves memory is on" in str(error.value)


def test_a_resumed_training_stays_on_its_rung(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        run_out_of_memory(patch, most=0, checkpointed=2)
        told: list[str] = []
        with pytest.raises(Interrupted):
            train(recipe, tmp_path, listener=stop_after(2), tell=told.append)
    tried = run_out_of_memory(monkeypatch, most=0, checkpointed=2)
    fit = train(recipe, tmp_path, resume=True)
    assert tried == []
    # The report mentions it all the same.
    climbed = [text for text in told if text.startswith("out of memory")]
    assert climbed and [text for text in fit.decisions if text in climbed] == climbed
