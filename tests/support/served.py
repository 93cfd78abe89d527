"""A real `llm-lora serve` under test, and the reference for its answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from safetensors.numpy import load_file, save_file
from support.commands import Command

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.run import Run
from llm_lora.store.store import Store

API_KEY, ADMIN_KEY = "a-key-for-use-0123456789", "a-key-for-admins-0123456789"
TOKENS = 40


@dataclass
class Served:
    """The command, and requests to what it serves."""

    command: Command
    store: Store
    url: str

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=self.url, timeout=120, headers={"Authorization": f"Bearer {API_KEY}"}
        )

    def chat(self, model: str, prompt: Any, **more: Any) -> dict[str, Any]:
        body = {"model": model, "messages": prompt, "temperature": 0, **more}
        response = self.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def text(self, model: str, prompt: Any, **more: Any) -> str:
        return str(self.chat(model, prompt, **more)["choices"][0]["message"]["content"])

    def promote(self, number: int) -> httpx.Response:
        return self.client.post(
            "/admin/promote",
            json={"name": "triage", "version": number, "force": True},
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
        )

    def processes(self) -> list[psutil.Process]:
        """Every process that the launcher started: guard, server, engine, workers."""
        return psutil.Process(self.command.process.pid).children(recursive=True)

    @property
    def server(self) -> psutil.Process:
        """vLLM's own first process, the guard's child."""
        (guard,) = psutil.Process(self.command.process.pid).children()
        return guard.children()[0]

    def wait_ready(self, seconds: float = 300) -> None:
        def ready() -> bool:
            try:
                return self.client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        self.command.wait_until(ready, seconds)


def greedy(run: Run | None, prompts: list[Any], *, folder: Path | None = None) -> list[list[int]]:
    """The answers of transformers (with PEFT) in float32, without batching, from the tiny base
    or the model in `folder`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder or bases.resolve("tiny").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if run is not None:
        model = PeftModel.from_pretrained(model, run.adapter).eval()
    answers = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        answers.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return answers


def scaled(source: Path, folder: Path, factor: float, **sampling: Any) -> Path:
    """A changed copy of an adapter; `sampling` changes its defaults."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file(
        {key: value * factor if "lora_B" in key else value for key, value in tensors.items()},
        folder / adapters.WEIGHTS,
    )
    manifest = json.loads((folder / adapters.MANIFEST).read_text())
    manifest["sampling"] |= sampling
    files.write_json(folder / adapters.MANIFEST, manifest | {"digest": adapters.digest(folder)})
    return folder


def runs_on(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
