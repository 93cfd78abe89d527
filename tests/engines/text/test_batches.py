"""The training order: complete, reproducible, and without waste."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_lora.engines.text import batches


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=200),
    st.integers(1, 3),
    st.integers(1, 17),
    st.booleans(),
    st.integers(0, 5),
)
def test_every_example_comes_once_an_epoch(
    lengths: list[int], epochs: int, batch_size: int, grouped: bool, seed: int
) -> None:
    options = {"epochs": epochs, "batch_size": batch_size, "grouped": grouped, "seed": seed}
    order = batches.plan(lengths, **options)  # type: ignore[arg-type]
    counts = Counter(index for batch in order for index in batch)
    assert counts == dict.fromkeys(range(len(lengths)), epochs)
    assert max(map(len, order)) <= batch_size
    assert order == batches.plan(lengths, **options)  # type: ignore[arg-type]


def test_another_seed_gives_another_order_and_epochs_differ() -> None:
    lengths = list(range(1, 65))
    one = batches.plan(lengths, epochs=2, batch_size=4, grouped=True, seed=1)
    other = batches.plan(lengths, epochs=2, batch_size=4, grouped=True, seed=2)
    assert one != other
    assert one[:16] != one[16:]


def test_grouping_saves_padding() -> None:
    lengths = [10 + (i * 37) % 400 for i in range(256)]

    def padding(grouped: bool) -> int:
        order = batches.plan(lengths, epochs=1, batch_size=8, grouped=grouped, seed=0)
        return sum(
            len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch)
            for batch in order
        )

    assert padding(True) < padding(False) / 4


def test_a_fraction_of_an_epoch() -> None:
    order = batches.plan([5] * 40, epochs=1.5, batch_size=4, grouped=False, seed=0)
    assert len(order) == 15


def test_padding_carries_no_loss() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    out = batches.pad(rows, pad_id=3)
    assert out["input_ids"].shape == (2, 32)
    assert out["input_ids"][:, :4].tolist() == [[5, 6, 7, 3], [8, 3, 3, 3]]
    assert out["labels"][:, :4].tolist() == [[-100, 6, 7, -100], [8, -100, -100, -100]]
    assert out["attention_mask"].sum(dim=1).tolist() == [3, 1]
    assert (out["labels"][:, 3:] == batches.IGNORED).all()


def test_weights_go_with_their_tokens() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "weights": [0.0, 0.5, 1.5]},
        {"input_ids": [8, 9], "labels": [-100, 9], "weights": [0.0, 2.0]},
    ]
    assert batches.pad(rows, pad_id=3)["weights"][:, :4].tolist() == [
        [0, 0.5, 1.5, 0],
        [0, 2, 0, 0],
    ]
    assert batches.concatenate(rows)["weights"].tolist() == [[0, 0.5, 1.5, 0, 2]]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def test_concatenated_examples_do_not_see_each_other(model: torch.nn.Module) -> None:
    def logits(first: list[int]) -> torch.Tensor:
        rows = [{"input_ids": ids, "labels": ids} for ids in (first, [20, 21, 22, 23, 24, 25])]
        batch = batches.concatenate(rows)
        assert batch["labels"][0, len(first)] == batches.IGNORED
        del batch["labels"]
        with torch.no_grad():
            return model(**batch, use_cache=False).logits[0, len(first) :]

    alone = model(input_ids=torch.tensor([[20, 21, 22, 23, 24, 25]])).logits[0]
    assert torch.allclose(logits([1, 2, 3, 4]), alone, atol=1e-5)
    assert torch.equal(logits([1, 2, 3, 4]), logits([9, 8, 7, 6]))


def test_tokens_after_each_step() -> None:
    assert batches.tokens_after([[0], [1, 2], [0]], [5, 7, 9], accumulate=2) == [0, 21, 26]
