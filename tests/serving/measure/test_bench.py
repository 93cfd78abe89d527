"""Advice from figures, and the size of an adapter; test_serving covers the measurement."""

from __future__ import annotations

from typing import Any

import pytest

from llm_lora.base import text as bases
from llm_lora.serving.measure import bench


def document(merged: float, base: float, adapter: float, mixed: float) -> dict[str, Any]:
    speeds = zip(bench.FORMS, (merged, base, adapter, mixed), strict=True)
    return {
        "forms": {name: {"tokens_per_second": speed} for name, speed in speeds},
        "settings": {"adapters": 4},
        "rank": 16,
        "slot_bytes": 3 * 2**20,
        "adapters_fit": 1200,
    }


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ((100, 101, 99, 99), "has no measurable cost here"),
        ((100, 100, 90, 90), "costs 10% of the throughput: serve adapters unless"),
        ((100, 100, 60, 60), "costs 40% of the throughput: with one adapter"),
        # A noisy machine: base and merged model differ more than adapter and merged model.
        ((100, 112, 90, 90), "has no measurable cost here"),
    ],
    ids=["free", "cheap", "dear", "noisy"],
)
def test_advice_follows_the_cost_unless_it_is_noise(
    speeds: tuple[float, float, float, float], said: str
) -> None:
    advice = bench.advise(document(*speeds))
    assert said in advice[1]
    assert not any("in one batch" in sentence for sentence in advice)
    assert advice[-1] == (
        "an adapter of rank 16 takes about 3.0 MiB while it is loaded; about 1,200 fit"
    )


def test_several_adapters_in_a_batch_are_mentioned_where_they_cost() -> None:
    advice = bench.advise(document(100, 100, 90, 72))
    assert "4 adapters in one batch cost another 20%" in advice


def test_a_slot_has_room_for_every_linear_layer_at_the_servers_rank() -> None:
    tiny = bases.resolve("tiny")
    config = bases.read_config(tiny.path)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    one = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    expected = 16 * config["num_hidden_layers"] * one * 2
    assert bench.slot_bytes(tiny, 16) == bench.slot_bytes(tiny, 12) == expected
    assert bench.slot_bytes(tiny, 17) == 2 * expected
