"""vLLM's flags and environment in isolation: limits, memory, flags that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_lora.base import text as bases
from llm_lora.machine import GIB, Hardware
from llm_lora.serving.launch import vllm as flags


@pytest.mark.parametrize(
    ("ranks", "limit"), [((), 16), ((8,), 16), ((17,), 32), ((8, 40), 64), ((300,), 320)]
)
def test_the_rank_limit_is_the_least_that_holds_all(ranks: tuple[int, ...], limit: int) -> None:
    assert flags.max_rank(ranks) == limit


def test_the_cache_holds_one_conversation_and_no_more_than_its_share() -> None:
    tiny = bases.resolve("tiny")
    assert flags.token_bytes(bases.read_config(tiny.path)) == 2 * 6 * 2 * 64 * 4
    assert flags.token_bytes(
        {
            "text_config": {
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "hidden_size": 2560,
            }
        }
    ) == (2 * 36 * 8 * 128 * 4)
    small = Hardware(2, GIB)
    assert flags.cache_bytes(tiny, 2048, small) == GIB // 4
    assert flags.cache_bytes(tiny, 200_000, small) == 200_000 * 2 * 6 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("--model other", "--model is set"),
        ("--api_key=x", "--api-key is set"),
        ("--middlew x", "--middlew is set"),
        ("--dtype 'half", "cannot be split"),
        ("--dtype half --port 1", "--port is set"),
        ("--structured_outputs_config.backend xgrammar", "--structured-outputs-config is set"),
        ("--structured-outputs-config.disable_any_whitespace=0", "--structured-outputs-config is"),
        ("--chat-template x.jinja", "--chat-template is set"),
        ("--default-chat-template-kwargs.thinking=true", "--default-chat-template-kwargs is set"),
        ("--tokenizer other", "--tokenizer is set"),
        ("--worker-extension-cls a.B", "--worker-extension-cls is set"),
        ("--generation-config auto", "--generation-config is set"),
        ("--max-lora-rank=8", "--max-lora-rank is set"),
        ("--max-loras 1", "--max-loras is set"),
        ("--max-model-len 1.5k", "--max-model-len is set"),
        ("--data-parallel-size 2", "--data-parallel-size is set"),
        ("-dp 2", "-dp is set"),
        ("--headless", "--headless is set"),
        ("--api-server-count 2", "--api-server-count is set"),
    ],
)
def test_flags_that_the_layer_relies_on_cannot_be_changed(extra: str, told: str) -> None:
    (problem,) = flags.extra_problems((extra,))
    assert told in problem.what


def test_other_flags_pass() -> None:
    assert flags.extra_problems(("--dtype half", "--max-num-seqs=4 --seed 1 -tp 2")) == []
    assert flags.extra_problems(("--tokenizer-mode slow --max-num-batched-tokens 64",)) == []


def test_the_environment_opens_no_other_door(tmp_path: Path) -> None:
    inherited = {"PATH": "/bin", "VLLM_API_KEY": "x", "VLLM_SERVER_DEV_MODE": "1"}
    told = flags.environment(inherited, tmp_path / "layer.json")
    assert told["PATH"] == "/bin" and told["LLM_LORA_SERVING"] == str(tmp_path / "layer.json")
    assert not {"VLLM_API_KEY", "VLLM_SERVER_DEV_MODE"} & set(told)
    assert told["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
