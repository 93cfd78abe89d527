"""Finding a base: what is accepted, what is refused, and what each refusal advises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.model_folders import FAMILIES, write_family, write_folder, write_safetensors

from llm_lora.base import text as base
from llm_lora.errors import UserError
from llm_lora.weights import header as weight_headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_family(tmp_path / "model", "qwen2.5")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_complete_folder(folder: Path) -> None:
    found = base.resolve(str(folder))
    assert found.path == folder
    assert (found.architecture, found.context_length) == ("Qwen3ForCausalLM", 512)
    assert (found.revision, found.embedded) == (None, False)
    assert found == base.resolve(str(folder))


def test_the_embedded_base() -> None:
    if not base.TINY.is_dir():
        pytest.skip("the embedded base is not there yet")
    found = base.resolve("tiny")
    assert found.embedded
    assert found.path == base.TINY


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_digest_follows_config_tokenizer_and_weights(folder: Path, changed: str) -> None:
    before = base.resolve(str(folder)).digest
    path = folder / changed
    if changed == "model.safetensors":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_text(path.read_text() + "\n")
    assert base.resolve(str(folder)).digest != before


def test_the_digest_samples_large_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_headers, "_HASH_WHOLE", 1_000_000)
    weights = folder / "model.safetensors"
    write_safetensors(weights, 10_000_000)
    before = base.resolve(str(folder)).digest
    data = bytearray(weights.read_bytes())
    data[5_000_000:5_400_000] = b"\1" * 400_000  # a twenty-fifth of the weights
    weights.write_bytes(data)
    assert base.resolve(str(folder)).digest != before


def refused(name: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        base.resolve(str(name))
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["llama-2-7b-chat.ggmlv3.q4_0.bin", "models/qwen3-0.6b-Q4_K_M.gguf"]
)
def test_llama_cpp_files_are_refused_by_name(name: str) -> None:
    assert "llama.cpp" in refused(name)
    assert "name the original model" in refused(name)


def test_a_path_that_is_not_there() -> None:
    assert refused("./no/such/folder").startswith("./no/such/folder: no such folder")


def test_an_adapter_is_no_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "this is an adapter, not a base" in refused(folder)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "pickled weights"),
        ("model-q4.gguf", "llama.cpp"),
        (None, "no safetensors weights"),
    ],
)
def test_weights_in_another_form(folder: Path, file: str | None, message: str) -> None:
    (folder / "model.safetensors").unlink()
    if file:
        (folder / file).write_bytes(b"x")
    assert message in refused(folder)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_damaged_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "damaged or incomplete safetensors" in refused(folder)


def test_a_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of 2 weight files are missing, such as model-2-of-2" in refused(folder)


def test_models_that_cannot_be_trained(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "awq"})
    assert "already quantised (awq)" in refused(folder)
    write_family(folder, "qwen2.5")
    change_config(folder, architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM is not a causal language model" in refused(folder)
    write_family(folder, "qwen2.5")
    change_config(folder, max_position_embeddings=None)
    assert "max_position_embeddings" in refused(folder)


def test_the_text_part_of_a_vision_model_counts(folder: Path) -> None:
    change_config(
        folder,
        architectures=["Gemma3ForConditionalGeneration"],
        max_position_embeddings=None,
        text_config={"max_position_embeddings": 131072},
    )
    assert base.resolve(str(folder)).context_length == 131072


def test_missing_tokenizer_and_template(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(folder)
    bare = write_folder(tmp_path / "bare", FAMILIES["qwen2.5"], None)
    assert "no chat template" in refused(bare)
    assert "instruct" in refused(bare)


# The hub, played by a server on this machine


@contextmanager
def hub(status: int, error: str | None = None, body: bytes = b"{}") -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(endpoint: str, cache: Path, *, revision: str | None = None, **environment: str) -> str:
    return ask_for("text", endpoint, cache, revision=revision, **environment)


def ask_for(
    module: str, endpoint: str, cache: Path, *, revision: str | None = None, **environment: str
) -> str:
    """The message of resolving "owner/model" in a fresh process, with a token that must not leak.

    The library reads its settings while it is imported, hence the process.
    """
    code = (
        f"from llm_lora.base import {module}\nfrom llm_lora.errors import UserError\n"
        f"try: print({module}.resolve('owner/model', {revision!r}))\n"
        "except UserError as error: print(error)"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": "hf_secret"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=kept | settings | environment,
    )
    assert "hf_secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "no such model on the hub"),
        (404, "RepoNotFound", "no such model on the hub"),
        (403, "GatedRepo", "gated"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (401, None, "log in again"),
        (503, None, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses(tmp_path: Path, status: int, code: str | None, message: str) -> None:
    with hub(status, code) as endpoint:
        told = ask(endpoint, tmp_path, revision="v9")
    assert told.startswith("owner/model: ")
    assert message in told
    assert "; " in told  # a remedy follows


def test_offline_and_unreachable_hubs(tmp_path: Path) -> None:
    told = ask("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "not in the local cache" in told
    assert "--set base=tiny" in told
    assert told == ask("http://127.0.0.1:9", tmp_path)


def test_a_cached_model_is_found_offline(tmp_path: Path) -> None:
    commit = "a" * 40
    cached = tmp_path / "hub" / "models--owner--model"
    write_family(cached / "snapshots" / commit, "qwen2.5")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    told = ask("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert f"revision='{commit}'" in told
    assert "name='owner/model'" in told
