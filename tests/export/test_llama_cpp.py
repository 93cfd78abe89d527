"""What llama.cpp itself makes of exported files: the same token ids, the same greedy answers."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command

from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.data.text.dataset import Dataset
from llm_lora.export.llamacpp import writing
from llm_lora.schema.answer import AnswerSchema

pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
llama_cpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip xllamacpp")
pytestmark = pytest.mark.slow

PROMPTS, TOKENS = 12, 40


class Server:
    """llama.cpp's own server, in this process; one token after another, everything in fp32."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        params = llama_cpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = 1024
        params.cpuparams.n_threads = 2
        params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.port = 0
        if adapter is not None:
            params.lora_adapters = [llama_cpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self._server = llama_cpp.Server(params)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        found: list[int] = self.ask("/tokenize", body)["tokens"]
        return found

    def greedy(self, ids: list[int]) -> list[int]:
        body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "top_k": 1}
        found: list[int] = self.ask("/completion", {**body, "return_tokens": True})["tokens"]
        return found


def greedy(model: Any, ids: list[int], chat: Chat) -> list[int]:
    """The same by transformers."""
    import torch

    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(chat.eos_ids),
        pad_token_id=chat.pad_id,
    )
    found: list[int] = out[0, len(ids) :].tolist()
    return found[:-1] if found[-1] in chat.eos_ids else found


def as_fp32(folder: Path, out: Path) -> Path:
    """A model folder with its numbers in fp32."""
    from support.random_models import load

    load(folder).save_pretrained(out)
    for path in (*folder.glob("tokenizer*.json"), *folder.glob("*.jinja")):
        (out / path.name).write_bytes(path.read_bytes())
    return out


def prompts(run: Path, chat: Chat) -> list[list[int]]:
    held_out = Dataset.read(run / "dataset").held_out
    return [chat.prompt_ids(example.prompt) for example in held_out[:PROMPTS]]


@pytest.fixture(scope="module")
def merged(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merge") / "merged"
    code, output = Command("merge", small_run, "--out", out, "--no-measure").finish()
    assert code == 0, output
    return out


def test_a_merged_model_answers_the_same_tokens(
    small_run: Path, merged: Path, tmp_path: Path
) -> None:
    from support.random_models import load

    chat = Chat.load(merged)
    whole = as_fp32(merged, tmp_path / "fp32")
    texts = [chat.decode(ids, skip_special=False) for ids in prompts(small_run, chat)]
    path = tmp_path / "merged.gguf"
    writing.write_model(whole, path, name="x", chat=chat, texts=texts, notes={})
    server, model = Server(path), load(merged)
    for text, ids in zip(texts, prompts(small_run, chat), strict=True):
        assert server.tokenize(text) == ids
        assert server.greedy(ids) == greedy(model, ids, chat)


def test_an_adapter_on_its_base_answers_the_same_tokens(small_run: Path, tmp_path: Path) -> None:
    from support.random_models import with_adapter

    base = bases.resolve("tiny").path
    chat = Chat.load(base)
    whole = as_fp32(base, tmp_path / "fp32")
    found = prompts(small_run, chat)
    writing.write_model(whole, tmp_path / "base.gguf", name="x", chat=chat, texts=[], notes={})
    code, output = Command("export", small_run, "--gguf", tmp_path / "adapter.gguf").finish()
    assert code == 0, output
    model = with_adapter(base, small_run / "adapter")
    plain = Server(tmp_path / "base.gguf")
    tuned = Server(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    for ids in found:
        assert tuned.greedy(ids) == greedy(model, ids, chat)
    assert [tuned.greedy(ids) for ids in found] != [plain.greedy(ids) for ids in found]


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_every_family_answers_the_same_tokens(kind: str, tmp_path: Path) -> None:
    import torch
    from support import random_models as models

    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    base = models.make_model(
        tmp_path / "base",
        kind,
        tie_word_embeddings=kind != "llama",
        **({"rope_parameters": rope} if kind == "llama" else {}),
    )
    folder = models.make_adapter(tmp_path / "adapter", base)
    chat = Chat.load(base)
    file, extra = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    writing.write_model(base, file, name="x", chat=chat, texts=[], notes={})
    writing.write_adapter(adapters.read(folder), base, extra, name="x", notes={})
    torch.manual_seed(11)
    # Longer than the waves that Llama 3's factors change.
    ids = torch.randint(4, 4096, (60,)).tolist()
    plain, tuned = Server(file), Server(file, extra)
    wanted = greedy(models.load(base), ids, chat)
    assert len(set(wanted)) > 5
    assert plain.greedy(ids) == wanted
    changed = greedy(models.with_adapter(base, folder), ids, chat)
    assert changed != wanted and tuned.greedy(ids) == changed


def test_the_exported_file_answers_as_the_merged_model_under_the_schema(
    small_run: Path, merged: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    code, output = Command("export", small_run, "--gguf", path, "--merged", "--no-measure").finish()
    assert code == 0, output
    server, chat = Server(path), Chat.load(merged)
    schema = AnswerSchema.load(small_run / "adapter" / "answer.schema.json")
    examples = Dataset.read(small_run / "dataset").held_out[:3]
    for example in examples:
        messages = [{"role": one.role, "content": one.content} for one in example.prompt]
        rendered = server.ask("/apply-template", {"messages": messages})["prompt"]
        assert server.tokenize(rendered) == chat.prompt_ids(example.prompt)
        body = {
            "messages": messages,
            "temperature": 0,
            "max_tokens": 600,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema.document},
            },
        }
        (choice,) = server.ask("/v1/chat/completions", body)["choices"]
        assert choice["finish_reason"] == "stop"
        assert schema.judge(choice["message"]["content"]).valid
