"""`llm-lora serve` with picture adapters: a real server and OpenAI's own client."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from click.testing import CliRunner
from PIL import Image
from support import picture_adapters
from support.commands import Command
from support.served import ADMIN_KEY, API_KEY, Served, runs_on

from llm_lora import files
from llm_lora.cli import painting
from llm_lora.machine import free_port
from llm_lora.store.store import Store

PROMPT = "a red circle"
ROUTE = "/v1/images/generations"
STEPS = 4


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, llm_lora: type[Command]
) -> Iterator[tuple[Served, Path]]:
    """A server for a store with one version of `style` live and three adapters as folders."""
    import torch

    folder = tmp_path_factory.mktemp("pictures")
    store = Store(folder / "store")
    picture_adapters.publish(store, folder, "style", seed=1)
    for seed in (2, 3):
        picture_adapters.write_adapter(folder / str(seed), seed=seed)
    keys = {"api-keys": API_KEY, "admin-keys": ADMIN_KEY}
    for name, key in keys.items():
        files.write_text(folder / name, f"{key}\n")
        (folder / name).chmod(0o600)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # Several threads may round sums differently; these pictures must be equal.
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        options = [word for name in keys for word in (f"--{name}", folder / name)]
        command = llm_lora(
            *("serve", "--store", store.root, "--port", port, "--max-waiting", 1, "--max-body", 1),
            *options,
        )
    made = Served(command, store, f"http://127.0.0.1:{port}")
    try:
        made.wait_ready()
        yield made, folder
    finally:
        if command.process.poll() is None:
            command.interrupt()
            command.finish(60)


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{served.url}/v1",
        api_key=API_KEY,
        max_retries=0,
        timeout=120,
        _strict_response_validation=True,
    )


def pixels(encoded: str | None) -> np.ndarray[Any, Any]:
    assert encoded
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def generated(folder: Path, *arguments: object, seed: int = 3) -> np.ndarray[Any, Any]:
    """The pictures of `llm-lora generate`."""
    options = ("--seed", seed, "--steps", STEPS, "--out", folder)
    words = [str(word) for word in (*arguments, *options)]
    done = CliRunner().invoke(painting.generate, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return np.asarray(Image.open(folder / f"{seed}.png"))


@pytest.mark.slow
def test_pictures_are_served_swapped_and_stacked_as_generate_paints_them(
    served: tuple[Served, Path], llm_lora: type[Command]
) -> None:
    server, folder = served
    asked = client(server)

    def paint(prompt: str = PROMPT, **extra: Any) -> np.ndarray[Any, Any]:
        body = {"seed": 3, "steps": STEPS} | extra
        got = asked.images.generate(model="style", prompt=prompt, n=1, extra_body=body)
        return pixels((got.data or [])[0].b64_json)

    assert {model.id for model in asked.models.list()} == {"tiny", "style", "style@1"}
    first = paint()
    assert np.array_equal(first, generated(folder / "out-1", folder / "1", PROMPT))
    # A second version, published and promoted by commands while the server runs.
    store = ("--store", server.store.root)
    for words in (
        ("publish", folder / "2", "--as", "style", *store),
        ("promote", "style", 2, "--force", *store),
    ):
        code, output = llm_lora(*words).finish()
        assert code == 0, output
    second = paint()
    assert not np.array_equal(first, second)
    assert np.array_equal(second, generated(folder / "out-2", folder / "2", PROMPT))
    # Another adapter, promoted over HTTP, stacked on the first.
    code, output = llm_lora("publish", folder / "3", "--as", "character", *store).finish()
    assert code == 0, output
    promoted = server.client.post(
        "/admin/promote",
        json={"name": "character", "version": 1, "force": True},
        headers={"Authorization": f"Bearer {ADMIN_KEY}"},
    )
    assert promoted.status_code == 200, promoted.text
    named = f"{PROMPT}, <lora:style:0.7> <lora:character:0.6>"
    both = paint(named)
    adapters = ("--adapter", f"style={folder / '2'}", "--adapter", f"character={folder / '3'}")
    assert np.array_equal(both, generated(folder / "out-3", *adapters, named))
    apart = [{"name": "style", "weight": 0.7}, {"name": "character", "weight": 0.6}]
    assert np.array_equal(both, paint(f"{PROMPT}", adapters=apart))


@pytest.mark.slow
def test_mistakes_and_hostile_requests_are_refused_and_it_paints_on(
    served: tuple[Served, Path],
) -> None:
    server, folder = served
    asked = client(server)
    secret = folder / "2"
    for model in ("nobody", "../store/style", str(secret), "style@77"):
        with pytest.raises(openai.NotFoundError, match="available: tiny"):
            asked.images.generate(model=model, prompt=PROMPT)
    for name in (str(secret), "../2", "style/../style", "tiny/../../x"):
        with pytest.raises(openai.NotFoundError):
            asked.images.generate(model="style", prompt=f"<lora:{name}:1>")
    wrong: list[dict[str, Any]] = [{"size": "1024x1024"}, {"n": 11}, {"style": "vivid"}]
    for said in (*wrong, {"response_format": "url"}):
        with pytest.raises(openai.BadRequestError):
            asked.images.generate(model="style", prompt=PROMPT, **said)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none").images.generate(prompt=PROMPT)
    post = server.client.post
    json = {"Content-Type": "application/json"}
    assert post(ROUTE, content=b" " * (2**20 + 1), headers=json).status_code == 413
    for body in (b"", b"{" * 100_000, b'{"model": "\xff"}', b'{"model": "\\ud800", "prompt": ""}'):
        assert post(ROUTE, content=body, headers=json).status_code in (400, 404), body[:40]
    for path in ("/paint", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "//paint"):
        # The whole address, because "//paint" alone would name a host.
        order = {"lora_name": "x", "lora_path": str(secret)}
        assert post(f"{server.url}{path}", json=order).status_code == 404, path
    got = asked.images.generate(model="tiny", prompt="", extra_body={"steps": 1})
    assert pixels((got.data or [])[0].b64_json).shape == (64, 64, 3)


@pytest.mark.slow
def test_the_queue_overflows_a_killed_painter_comes_back_and_the_end_waits_for_requests(
    served: tuple[Served, Path],
) -> None:
    server, _ = served

    def ask(steps: int) -> httpx.Response:
        body = {"model": "style", "prompt": PROMPT, "seed": 3, "steps": steps}
        return server.client.post(ROUTE, json=body)

    with ThreadPoolExecutor(6) as pool:
        codes = sorted(one.status_code for one in pool.map(ask, [40] * 6))
    # One is painted, one waits; others enter only when one of these is done.
    assert codes[:2] == [200, 200] and codes[-1] == 429 and set(codes) == {200, 429}
    before = ask(STEPS).json()["data"]
    server.server.kill()
    server.command.wait_until(lambda: not answers(server))
    server.wait_ready()
    assert ask(STEPS).json()["data"] == before
    processes = [*server.processes()]
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(ask, 120)
        server.command.wait_until(lambda: painting_now(server))
        server.command.process.terminate()
        assert last.result().status_code == 200
    code, output = server.command.finish(60)
    assert code == 0 and "Finishing running requests" in output, output
    assert "painter exited with code 137; restarting" in output
    assert not any(map(runs_on, processes))


def answers(server: Served) -> bool:
    try:
        return server.client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def painting_now(server: Served) -> bool:
    return "llm_lora_painting_requests 1.0" in server.client.get("/metrics").text
