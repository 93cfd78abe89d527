"""Exports: read back by other programs, and equal to the model they were made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command
from support.model_folders import FAMILIES, write_family

from llm_lora.adapter import folder as adapters
from llm_lora.adapter.manifest import Manifest, Origin
from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.errors import UserError
from llm_lora.example import Message
from llm_lora.export.llamacpp import modelfile, vocabulary, writing
from llm_lora.export.llamacpp.family import Family

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "the architecture is Gemma3ForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "the architecture is Qwen3MoeForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"use_sliding_window": True}, "sliding windows are used"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows are used"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling is yarn"),
        ({"attention_bias": True}, "linear layers have biases"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only part of each head"),
    ],
)
def test_what_is_not_mapped_is_refused_and_leads_to_the_converter(
    change: dict[str, Any], reason: str
) -> None:
    assert Family.of(QWEN3, "config.json").name == "qwen3"
    with pytest.raises(UserError, match=f"{reason}.*convert_hf_to_gguf.py"):
        Family.of(QWEN3 | change, "config.json")


def test_foreign_tensors_are_refused_by_name() -> None:
    family = Family.of(QWEN3, "here")
    assert family.rename("model.layers.1.mlp.up_proj.weight", "here") == "blk.1.ffn_up.weight"
    with pytest.raises(UserError, match=r"the model has a tensor model\.layers\.1\.mlp\.router"):
        family.rename("model.layers.1.mlp.router.weight", "here")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_is_written_whole(tmp_path: Path, name: str) -> None:
    folder = write_family(tmp_path / name, name)
    chat = Chat.load(folder)
    size = bases.read_config(folder)["vocab_size"] + 8
    found = vocabulary.read(folder, size, chat, [])
    assert (found.cut, found.cut_exactly) == ("qwen2", True)
    assert len(found.tokens) == len(found.kinds) == size
    assert found.tokens[-8:] == [f"[PAD{i}]" for i in range(size - 8, size)]
    kinds = dict(zip(found.tokens, found.kinds, strict=True))
    assert all(kinds[special] == gguf.TokenType.CONTROL for special in FAMILIES[name].specials)
    assert all(kinds[one] == gguf.TokenType.USER_DEFINED for one in FAMILIES[name].plain_added)
    assert found.ends == chat.eos_ids
    with pytest.raises(UserError, match=r"its tokenizer has .* tokens, its embedding 10"):
        vocabulary.read(folder, 10, chat, [])


def test_llama_3s_way_of_cutting_needs_whole_words_to_be_taken(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "a", "llama3")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    split = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    document["model"]["ignore_merges"] = True
    path.write_text(json.dumps(document))
    assert vocabulary.read(folder, 500, Chat.load(folder), []).cut == "llama-bpe"


def test_a_way_of_cutting_is_proven_on_texts_or_refused(tmp_path: Path) -> None:
    tiny = bases.resolve("tiny").path
    found = vocabulary.read(tiny, 4096, Chat.load(tiny), ["38.5 °C for 12 days"])
    # Its merges never join what its pattern splits, except digits.
    assert (found.cut, found.cut_exactly) == ("superbpe", False)

    folder = write_family(tmp_path / "a", "qwen3")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w|\W"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="splits text as llama"):
        vocabulary.read(folder, 500, Chat.load(folder), [])


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "WordPiece"}},
    ],
    ids=["metaspace", "lowercase", "wordpiece"],
)
def test_other_tokenizers_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_family(tmp_path / "a", "qwen3")
    chat = Chat.load(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="not a plain byte-level BPE"):
        vocabulary.read(folder, 500, chat, [])


def go(template: str, messages: list[Message]) -> str:
    """Go's output for the few actions that `Turns.in_go` writes."""
    import re

    loop, _, reply = template.removeprefix("{{ range $i, $m := .Messages }}").rpartition(
        "{{ end }}"
    )
    blocks = re.findall(r"\{\{ if (.*?) \}\}(.*?)\{\{ end \}\}", loop)
    assert "".join(f"{{{{ if {test} }}}}{body}{{{{ end }}}}" for test, body in blocks) == loop

    def text(part: str, content: str) -> str:
        words = re.findall(r'\{\{ (\$m\.Content|".*?[^\\]") \}\}', part)
        assert "".join(f"{{{{ {word} }}}}" for word in words) == part
        return "".join(content if word == "$m.Content" else json.loads(word) for word in words)

    result = ""
    for i, message in enumerate(messages):
        for test, body in blocks:
            role = re.fullmatch(r'eq \$m\.Role "(\w+)"', test)
            first = test == 'and (eq $i 0) (ne $m.Role "system")'
            assert role or first
            if (role and role[1] == message.role) or (
                first and i == 0 and message.role != "system"
            ):
                result += text(body, message.content)
    return result + text(reply, "")


@pytest.mark.parametrize("name", ["tiny", "qwen2.5", "qwen3", "llama3"])
def test_ollamas_template_writes_what_training_wrote(tmp_path: Path, name: str) -> None:
    folder = bases.TINY if name == "tiny" else write_family(tmp_path / name, name)
    chat = Chat.load(folder)
    begin = "<|begin_of_text|>" if name == "llama3" else ""
    system, user = Message("system", 'Say "{{x}}".'), Message("user", "It's\n\\two </lines>")
    for added in {"", begin}:
        template = modelfile.Turns.of(chat, added, "here").in_go()
        for messages in ([user], [system, user], [system, user, Message("assistant", "{}"), user]):
            wanted = chat.render(messages, add_generation_prompt=True)
            assert added + go(template, messages) == wanted


def test_a_template_that_counts_its_messages_is_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "a", "qwen3")
    path = folder / "chat_template.jinja"
    counting = "message.role + loop.index | string + '\\n'"
    path.write_text(path.read_text().replace("message.role + '\\n'", counting, 1))
    with pytest.raises(UserError, match="cannot be converted for Ollama"):
        modelfile.Turns.of(Chat.load(folder), "", "here")


def test_a_modelfile_says_everything_that_ollama_would_guess(tmp_path: Path) -> None:
    chat = Chat.load(bases.TINY)
    sampling = {"temperature": 0.0, "top_p": 0.9, "max_new_tokens": 48}
    options: dict[str, Any] = {
        "model": "base.gguf",
        "adapter": "adapter.gguf",
        "turns": modelfile.Turns.of(chat, "", "here"),
        "ends": ["<|im_end|>"],
        "context": 2048,
        "where": tmp_path,
    }
    manifest = Manifest(
        digest="d", base=Origin("tiny", "d"), system="Two\nlines.", sampling=sampling
    )
    text = modelfile.write(manifest=manifest, **options)
    assert text.startswith('FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE """{{ range')
    assert text.split('"""\n', 1)[1] == (
        'SYSTEM """Two\nlines."""\n'
        "PARAMETER temperature 0.0\nPARAMETER top_p 0.9\nPARAMETER top_k 0\nPARAMETER min_p 0\n"
        "PARAMETER repeat_penalty 1\nPARAMETER num_predict 48\nPARAMETER num_ctx 2048\n"
        'PARAMETER stop "<|im_end|>"\n'
    )
    with pytest.raises(UserError, match="which a Modelfile cannot"):
        modelfile.write(manifest=replace(manifest, system='a """ b'), **options)


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model (`base`) and an adapter (`adapter`)."""
    import torch
    from support import random_models as models

    folder = tmp_path_factory.mktemp(request.param)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config: dict[str, Any] = {"rope_parameters": rope} if request.param == "llama" else {}
    base = models.make_model(
        folder / "base",
        request.param,
        dtype=torch.bfloat16,
        tie_word_embeddings=request.param != "llama",
        shard="300KB",
        **config,
    )
    models.make_adapter(folder / "adapter", base)
    return folder


def write(base: Path, path: Path) -> vocabulary.Vocabulary:
    return writing.write_model(
        base, path, name="x", chat=Chat.load(base), texts=[], notes={writing.SCHEMA_KEY: "{}"}
    )


@pytest.mark.slow
def test_transformers_reads_the_file_as_the_same_model(family: Path, tmp_path: Path) -> None:
    import torch
    from support import random_models as models

    write(family / "base", tmp_path / "model.gguf")
    config = bases.read_config(family / "base")
    # transformers 5.19 does not read a Qwen3 head's width from a file; llama.cpp does.
    width = {"head_dim": config["head_dim"]} if "head_dim" in config else {}
    read = models.load(tmp_path, gguf_file="model.gguf", **width)
    wanted = models.load(family / "base")
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    if config["model_type"] != "llama":
        # transformers does not read Llama 3's rope factors from a file.
        assert torch.equal(models.logits(read), models.logits(wanted))


@pytest.mark.slow
def test_the_file_holds_template_schema_and_end_tokens(family: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    words = write(family / "base", path)
    fields = {key: one.contents() for key, one in gguf.GGUFReader(path).fields.items()}
    chat = Chat.load(family / "base")
    assert fields["tokenizer.chat_template"] == chat.template
    assert fields["tokenizer.ggml.eos_token_id"] == chat.eos_ids[0]
    assert fields["tokenizer.ggml.tokens"] == words.tokens
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["llm_lora.answer_schema"] == "{}"
    config = bases.read_config(family / "base")
    heads = config["hidden_size"] // config["num_attention_heads"]
    width = fields[f"{config['model_type']}.attention.key_length"]
    assert width == config.get("head_dim", heads)


@pytest.mark.slow
def test_rope_factors_are_those_of_transformers() -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(rope_parameters=rope, head_dim=64, architectures=["LlamaForCausalLM"])
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    family = Family.of(config.to_dict(), "here")
    plain = 1 / 500_000.0 ** (torch.arange(0, 64, 2) / 64)
    found = plain / torch.from_numpy(family.rope_factors())
    assert torch.allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_flipped_bit_is_found_when_the_file_is_read_back(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require = writing._require_written

    def damaged(path: Path, *rest: Any) -> None:
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(bytes(data))
        require(path, *rest)

    monkeypatch.setattr(writing, "_require_written", damaged)
    with pytest.raises(UserError, match="differs from what was written"):
        write(family / "base", tmp_path / "model.gguf")


@pytest.mark.slow
def test_an_adapter_for_peft_is_copied_and_verified(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "peft"
    code, output = Command("export", small_run, "--peft", out).finish()
    assert code == 0, output
    assert adapters.read(out).digest == adapters.read(small_run / "adapter").digest
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "answer.schema.json",
        "chat_template.jinja",
        "llm_lora.json",
    }
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())

    from peft import PeftModel
    from support.random_models import load

    assert PeftModel.from_pretrained(load(bases.TINY), out).peft_config["default"].r == 16


@pytest.mark.slow
def test_a_folder_for_vllm_has_command_and_request(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "vllm"
    code, output = Command("export", small_run, "--vllm", out).finish()
    assert code == 0, output
    assert f"--lora-modules small={out / 'adapter'}" in output
    assert "--max-lora-rank 16" in output and output in (out / "README.md").read_text() + output
    request = json.loads((out / "request.json").read_text())
    assert [one["role"] for one in request["messages"]] == ["system", "user"]
    schema = json.loads((small_run / "adapter" / "answer.schema.json").read_text())
    assert request["response_format"]["json_schema"]["schema"] == schema
    assert adapters.read(out / "adapter")


@pytest.mark.slow
def test_one_target_must_be_chosen(small_run: Path, tmp_path: Path) -> None:
    for options, message in (
        ((), "exactly one of --peft, --gguf, --ollama, --vllm, --webui is needed, not 0"),
        (
            ("--peft", tmp_path / "a", "--vllm", tmp_path / "b"),
            "exactly one of --peft, --gguf, --ollama, --vllm, --webui is needed, not 2",
        ),
        (("--peft", tmp_path / "a", "--merged"), "--merged needs --gguf or --ollama"),
    ):
        code, output = Command("export", small_run, *options).finish()
        assert code == 2 and message in output, output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_for_ollama_is_complete(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ollama"
    code, output = Command("export", small_run, "--ollama", out).finish()
    assert code == 0, output
    assert {path.name for path in out.iterdir()} == {
        "Modelfile",
        "README.md",
        "adapter.gguf",
        "answer.schema.json",
        "base.gguf",
        "request.json",
    }
    request = json.loads((out / "request.json").read_text())
    assert request["format"] == json.loads((out / "answer.schema.json").read_text())
    assert [one["role"] for one in request["messages"]] == ["user"]
    assert "SYSTEM " in (out / "Modelfile").read_text()
