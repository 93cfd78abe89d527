"""The training order: complete, reproducible, and without waste."""

from __future__ import annotations

import random
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


def test_without_grouping_every_epoch_is_shuffled_anew() -> None:
    order = batches.plan([5] * 64, epochs=2, batch_size=8, grouped=False, seed=1)
    first, second = ([i for batch in part for i in batch] for part in (order[:8], order[8:]))
    assert sorted(first) == sorted(second) == list(range(64))
    assert len({tuple(first), tuple(second), tuple(range(64))}) == 3


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


@pytest.mark.parametrize(
    ("epochs", "count"),
    [(0.001, 1), (0.1, 1), (0.26, 3), (0.34, 3), (0.36, 4), (1, 10), (2.04, 20)],
)
def test_a_run_has_the_nearest_number_of_batches_and_at_least_one(
    epochs: float, count: int
) -> None:
    order = batches.plan([5] * 39, epochs=epochs, batch_size=4, grouped=True, seed=0)
    assert len(order) == count


def test_sixteen_batches_are_sorted_by_length_together() -> None:
    generator = random.Random(5)
    lengths = generator.sample(range(1000), 2 * 16 * 4)
    order = batches.plan(lengths, epochs=1, batch_size=4, grouped=True, seed=0)
    assert len(order) == 32
    # Half the examples are in each pool, so a batch reaches over about eight ranks, not four.
    ranks = {length: rank for rank, length in enumerate(sorted(lengths))}
    reach = [ranks[lengths[one[-1]]] - ranks[lengths[one[0]]] for one in order]
    assert all(sorted(one, key=lengths.__getitem__) == one for one in order)
    assert 5 < sum(reach) / len(reach) < 12
    # One pool alone is cut into its batches from the shortest to the longest.
    one_pool = lengths[: 16 * 4]
    order = batches.plan(one_pool, epochs=1, batch_size=4, grouped=True, seed=0)
    by_length = sorted(range(64), key=one_pool.__getitem__)
    assert sorted(order) == sorted(by_length[at : at + 4] for at in range(0, 64, 4))
    firsts = [one_pool[one[0]] for one in order]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True)), "batches are shuffled"


def test_a_planned_order_is_what_the_loader_is_given() -> None:
    order = batches.Order([[3, 1], [2]])
    assert list(order) == [[3, 1], [2]] and len(order) == 2


@pytest.mark.parametrize(("longest", "width"), [(1, 32), (32, 32), (33, 64), (64, 64)])
def test_rows_are_padded_to_a_multiple_of_32(longest: int, width: int) -> None:
    rows = [{"input_ids": [1] * n, "labels": [1] * n} for n in (longest, 1)]
    batch = batches.pad(rows, pad_id=0)
    assert {name: tuple(one.shape) for name, one in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "attention_mask"), (2, width)
    )
    assert {one.dtype for one in batch.values()} == {torch.int64}


def test_rows_on_end_keep_their_tokens_and_restart_their_positions() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [batches.IGNORED, 6, 7]},
        {"input_ids": [8, 9], "labels": [8, 9]},
    ]
    found = {name: one.tolist() for name, one in batches.concatenate(rows).items()}
    assert found == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[batches.IGNORED, 6, 7, batches.IGNORED, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
    }


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
