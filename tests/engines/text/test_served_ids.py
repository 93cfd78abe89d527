"""Before training, token ids are compared with those of the server's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.model_folders import (
    FAMILIES,
    byte_fallback_tokenizer,
    write_family,
    write_folder,
)

from llm_lora.base import Base, Chat
from llm_lora.base import text as bases
from llm_lora.engines.text.served_ids import require_allowed_start, require_served_ids
from llm_lora.errors import UserError
from llm_lora.example import Message, make_example
from llm_lora.schema import AnswerSchema

EXAMPLES = [
    make_example(
        (Message("user", f"Headache for {n} days,\n\nwhat  now?"),),
        f'{{"days": {n}}}',
        part=None,
        where=f"row {n}",
    )
    for n in range(40)
]


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def write_llama(folder: Path, tokenizer_class: str) -> Path:
    """A byte-level tokenizer under a Llama config, as DeepSeek-coder has it."""
    write_family(folder, "qwen2.5")
    change(folder / "config.json", architectures=["LlamaForCausalLM"], model_type="llama")
    change(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def write_llama_2(folder: Path, tokenizer_class: str) -> Path:
    """The old tokenizer of Llama 2: transformers 5 writes no space before parts of a text."""
    made = byte_fallback_tokenizer(("<s>", "</s>"))
    write_folder(folder, FAMILIES["qwen2.5"], "")
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    change(folder / "config.json", architectures=["LlamaForCausalLM"], model_type="llama")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class=tokenizer_class,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )
    change(folder / "generation_config.json", eos_token_id=made.token_to_id("</s>"))
    return folder


def opened(folder: Path) -> tuple[Base, Chat]:
    return bases.resolve(str(folder)), Chat.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_class_fits_their_file_pass(family: str, tmp_path: Path) -> None:
    require_served_ids(*opened(write_family(tmp_path / "base", family)), EXAMPLES)


def test_the_embedded_base_passes() -> None:
    require_served_ids(*opened(bases.TINY), EXAMPLES)


@pytest.mark.parametrize("write", [write_llama, write_llama_2])
def test_a_class_that_rebuilds_the_tokenizer_is_refused_and_the_advice_helps(
    write: Any, tmp_path: Path
) -> None:
    base, chat = opened(write(tmp_path / "base", "LlamaTokenizerFast"))
    with pytest.raises(UserError) as raised:
        require_served_ids(base, chat, EXAMPLES)
    message = str(raised.value)
    assert "the server would build other token ids than training" in message
    assert "loads the tokenizer as LlamaTokenizer" in message
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in message
    change(base.path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    require_served_ids(*opened(base.path), EXAMPLES)


def test_a_difference_in_one_example_is_found(tmp_path: Path) -> None:
    base, chat = opened(write_family(tmp_path / "base", "qwen2.5"))
    path = base.path / "tokenizer.json"
    made = json.loads(path.read_text())
    # The server's folder has a word that the one trained on has not.
    made["added_tokens"].append(
        {
            "id": len(made["model"]["vocab"]),
            "content": "for 39 days",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
    )
    path.write_text(json.dumps(made))
    with pytest.raises(UserError, match="the server would build other token ids"):
        require_served_ids(base, chat, EXAMPLES[39:])


def test_a_folder_that_the_server_cannot_load_is_refused(tmp_path: Path) -> None:
    base, chat = opened(write_family(tmp_path / "base", "qwen2.5"))
    (base.path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the server could not load this tokenizer"):
        require_served_ids(base, chat, EXAMPLES)


SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "integer"}},
    "required": ["days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("key", ["forced_weight", "validation_loss"])
def test_a_start_that_the_constraint_refuses_is_told_or_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "answer.schema.json"
    path.write_text(json.dumps(SCHEMA))
    schema = AnswerSchema.load(path)
    plain: dict[str, Any] = {"forced_weight": 1, "validation_loss": "free"}
    values = {"forced_weight": 0.5, "validation_loss": "constrained"}
    asked = plain | {key: values[key]}
    told: list[str] = []

    _, fits = opened(write_family(tmp_path / "fits", "qwen2.5"))
    rows = [fits.encode(one) for one in EXAMPLES]
    require_allowed_start(fits, schema, rows, told.append, **asked)
    assert not told

    _, joins = opened(write_llama_2(tmp_path / "joins", "PreTrainedTokenizerFast"))
    rows = [joins.encode(one) for one in EXAMPLES]
    with pytest.raises(UserError, match=f"train.{key}.*40 of 40 answers begin with the token"):
        require_allowed_start(joins, schema, rows, told.append, **asked)
    require_allowed_start(joins, schema, rows, told.append, **plain)
    assert "will begin with another token than was trained" in told[0]
