"""The layer's routes: the allow-list and its keys."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope
from support.fake_vllm import CLOSED
from support.in_process import Got, ask, chat
from support.layer_parts import Parts, config, parts

from llm_lora.errors import UserError
from llm_lora.serving.layer import routes
from llm_lora.serving.layer.errors import Refused
from llm_lora.serving.layer.keys import ADMIN_KEYS, API_KEYS, Keys, any_for_use
from llm_lora.serving.layer.routes import Access

USE, ADMIN = "use-key-0123456789", "admin-key-0123456789"


@pytest.fixture
def guarded(tmp_path: Path) -> Parts:
    """A layer with keys for use and for administration."""
    for name, key in (("use", USE), ("admin", ADMIN)):
        (tmp_path / name).write_text(f"# who: me\n\n{key}\n{key}-other\n")
        (tmp_path / name).chmod(0o600)
    made = parts(tmp_path, api_keys_file=tmp_path / "use", admin_keys_file=tmp_path / "admin")
    made.publish("qa", 1, live=True)
    return made


def run(app: Any, method: str, path: str, value: Any = None, **more: Any) -> Got:
    return asyncio.run(ask(app, method, path, value, **more))


def test_only_listed_routes_of_the_server_can_be_reached(guarded: Parts) -> None:
    async def everything() -> None:
        for route in guarded.server.app.routes:
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"):
                for key in (None, USE, ADMIN):
                    path = route.path.replace("{name}", "qa").replace("{id}", "1")
                    value = {"lora_name": "evil", "lora_path": "/etc", "name": "evil", "src": "/"}
                    got = await ask(guarded.layer, method, path, value, key=key)
                    wanted = routes.ROUTES["text"].get(path)
                    if wanted is None:
                        assert got.status == 404, (method, path)
                    elif wanted[0] != method:
                        assert got.status == 405, (method, path)
                        assert got.headers["allow"] == wanted[0]

    asyncio.run(everything())
    assert guarded.server.reached == []
    assert "evil" not in guarded.server.adapters
    assert guarded.server.loads == []


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_closed_route_would_be_reached_without_the_layer(
    method: str, path: str, guarded: Parts
) -> None:
    run(guarded.server, method, path.replace("{name}", "qa").replace("{id}", "1"))
    assert guarded.server.reached != []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/",
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/../load_lora_adapter",
        "/v1/chat/completions/../../load_lora_adapter",
        "/v1/load_lora_adapter%00",
        "/%76%31/models",
        "/v1/models;x",
        "",
        "/v1/mödels",
        "/" + "x" * 100_000,
    ],
)
def test_paths_count_as_they_are_written(path: str, guarded: Parts) -> None:
    got = run(guarded.layer, "GET", path, key=USE)
    assert got.status == 404 and got.error["code"] == "unknown_route"
    assert len(got.body) < 1000
    assert guarded.server.reached == guarded.server.loads == []


def test_keys_for_use_and_for_administration_are_apart(guarded: Parts) -> None:
    history = {"query": "name=qa"}

    def status(method: str, path: str, key: str | None, **more: Any) -> int:
        return run(guarded.layer, method, path, key=key, **more).status

    for path in ("/v1/models", "/v1/adapters", "/metrics"):
        assert [status("GET", path, key) for key in (None, "x", USE, ADMIN)] == [401, 401, 200, 403]
    for path in ("/health", "/ready", "/version", "/"):
        assert status("GET", path, None) in (200, 503)
    keys = (None, "x", USE, ADMIN)
    assert [status("GET", "/admin/history", key, **history) for key in keys] == [401, 401, 403, 200]
    assert status("GET", "/v1/models", f"{USE}-other") == 200
    refused = run(guarded.layer, "GET", "/v1/models")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.error["type"] == "authentication_error"


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", f"Basic {USE}", USE, f"Bearer{USE}", f"Bearer {USE}x", "Bearer \xff"],
)
def test_what_is_no_key_is_refused(value: str, guarded: Parts) -> None:
    got = run(guarded.layer, "GET", "/v1/models", headers={"authorization": value})
    assert got.status == 401


def test_the_scheme_is_read_as_http_has_it(guarded: Parts) -> None:
    headers = {"authorization": f"bearer {USE}"}
    assert run(guarded.layer, "GET", "/v1/models", headers=headers).status == 200


def test_no_request_reaches_the_server_without_a_key(guarded: Parts) -> None:
    assert asyncio.run(chat(guarded.layer, "qa")).status == 401
    assert guarded.server.asked == []


def test_the_server_never_sees_the_key(guarded: Parts) -> None:
    assert asyncio.run(chat(guarded.layer, "qa", key=USE)).status == 200
    assert USE not in str(guarded.server.headers)


def test_without_keys_use_is_open_and_administration_closed(tmp_path: Path) -> None:
    made = parts(tmp_path)
    made.publish("qa", 1, live=True)
    assert run(made.layer, "GET", "/v1/models").status == 200
    got = run(made.layer, "POST", "/admin/rollback", {"name": "qa"})
    assert got.status == 403 and "LLM_LORA_ADMIN_KEYS" in got.error["message"]


def test_keys_come_from_the_environment_too(tmp_path: Path) -> None:
    environment = {"LLM_LORA_API_KEYS": f"{USE}, {USE}-two", "LLM_LORA_ADMIN_KEYS": ADMIN}
    keys = Keys.read(config(tmp_path), environment)
    assert (len(keys.use), len(keys.admin)) == (2, 1)
    assert USE not in repr(keys)
    assert any_for_use(None, environment) == USE
    assert any_for_use(None, {}) is None


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (f"{USE}\n", 0o604, "other users may read"),
        (f"{USE}\n", 0o602, "other users may read or write"),
        ("# nothing\n\n", 0o600, "this file holds no key"),
        ("short\n", 0o600, "key 1 is not 16 or more"),
        (f"{USE}\nwith a space in it\n", 0o600, "key 2 is not"),
        (f"{USE}é\n", 0o600, "ASCII"),
    ],
)
def test_a_file_of_keys_that_will_not_do_is_refused(
    text: str, mode: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UserError, match=said) as caught:
        Keys.read(config(tmp_path, api_keys_file=path), {})
    assert text.strip() not in str(caught.value)


def test_a_missing_file_of_keys_never_means_an_open_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Keys.read(config(tmp_path, api_keys_file=tmp_path / "gone"), {})
    with pytest.raises(UserError, match="set, but holds no key"):
        Keys.read(config(tmp_path), {"LLM_LORA_API_KEYS": " , "})


def given(*values: str) -> Scope:
    return {"type": "http", "headers": [(b"authorization", value.encode()) for value in values]}


def test_a_key_is_named_by_the_first_digits_of_its_digest() -> None:
    use, admin = (hashlib.sha256(key.encode()) for key in (USE, ADMIN))
    keys = Keys((b"other", use.digest()), (admin.digest(),))
    assert keys.check(given(f"Bearer {USE}"), Access.USE) == use.hexdigest()[:8]
    assert keys.check(given(f"Bearer  {ADMIN} "), Access.ADMIN) == admin.hexdigest()[:8]
    # An open route names nobody, and nor does one that asks for no key.
    assert keys.check(given(f"Bearer {USE}"), Access.OPEN) == ""
    assert Keys((), (admin.digest(),)).check(given(f"Bearer {ADMIN}"), Access.USE) == ""


@pytest.mark.parametrize(
    ("key", "access", "status", "code"),
    [
        (None, Access.USE, 401, "invalid_api_key"),
        ("unknown-0123456789", Access.ADMIN, 401, "invalid_api_key"),
        (ADMIN, Access.USE, 403, "wrong_key"),
        (USE, Access.ADMIN, 403, "wrong_key"),
    ],
)
def test_a_key_that_is_not_for_this_is_refused(
    key: str | None, access: Access, status: int, code: str
) -> None:
    keys = Keys(*((hashlib.sha256(one.encode()).digest(),) for one in (USE, ADMIN)))
    scope = given() if key is None else given(f"Bearer {key}")
    with pytest.raises(Refused) as caught:
        keys.check(scope, access)
    assert (caught.value.status, caught.value.code) == (status, code)
    # Whoever has any key may be told what stands behind an open route.
    assert keys.admits(scope) == (status == 403)
    assert Keys((), keys.admin).admits(scope)


def test_two_keys_at_once_are_none() -> None:
    keys = Keys((hashlib.sha256(USE.encode()).digest(),))
    for scope in (given(f"Bearer {USE}", f"Bearer {USE}"), given(f"Bearer {USE}", "Bearer x")):
        with pytest.raises(Refused, match="this route needs an API key"):
            keys.check(scope, Access.USE)


def test_a_key_of_nothing_opens_nothing() -> None:
    """What brings no key counts as the digest of nothing, which no set of keys can hold."""
    for text in ("", " ", "Bearer", "Bearer  "):
        with pytest.raises(Refused, match="this route needs an API key"):
            Keys((hashlib.sha256(USE.encode()).digest(),)).check(given(text), Access.USE)


def test_keys_of_a_file_and_of_the_environment_add_up(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"  {USE}\n{'k' * 16}\n# {'c' * 20}\n{USE}\n")
    path.chmod(0o640)
    keys = Keys.read(config(tmp_path, api_keys_file=path), {API_KEYS: f"{ADMIN},,{USE}"})
    assert keys.use == tuple(hashlib.sha256(k.encode()).digest() for k in (USE, "k" * 16, ADMIN))
    assert keys.admin == ()
    assert any_for_use(path, {API_KEYS: ADMIN}) == USE
    with pytest.raises(UserError, match="key 2 is not 16 or more"):
        Keys.read(config(tmp_path), {ADMIN_KEYS: f"{ADMIN},{'k' * 15}"})
    for mode in (0o604, 0o602, 0o601):
        path.chmod(mode)
        with pytest.raises(UserError, match="other users may read or write"):
            Keys.read(config(tmp_path, api_keys_file=path), {})


def test_a_key_cannot_be_for_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same key is set for use and for administration"):
        Keys.read(config(tmp_path), {"LLM_LORA_API_KEYS": USE, "LLM_LORA_ADMIN_KEYS": USE})


def test_files_of_keys_can_be_changed_while_the_server_runs(guarded: Parts, tmp_path: Path) -> None:
    async def scenario() -> list[int]:
        seen = []
        for text in ("fresh-key-0123456789\n", "short\n"):
            (tmp_path / "use").write_text(text)
            await guarded.layer.upkeep.once()
            for key in (USE, "fresh-key-0123456789"):
                seen.append((await ask(guarded.layer, "GET", "/v1/models", key=key)).status)
        return seen

    assert asyncio.run(scenario()) == [401, 200, 401, 200]


def test_websockets_are_closed(guarded: Parts) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    asyncio.run(guarded.layer(scope, receive, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_servers_lifespan_passes_through_and_upkeep_lives_within_it(guarded: Parts) -> None:
    async def scenario() -> list[str]:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        sent: list[str] = []
        started = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])
            started.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        work = asyncio.create_task(guarded.layer(scope, messages.get, send))  # type: ignore[arg-type]
        await started.wait()
        for _ in range(500):
            ready = await ask(guarded.layer, "GET", "/ready", key=USE)
            if ready.status == 200:
                break
            await asyncio.sleep(0.01)
        assert ready.json == {"ready": True, "missing": {}, "refused": {}}
        messages.put_nowait({"type": "lifespan.shutdown"})
        await work
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"
        return sent

    assert asyncio.run(scenario()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(guarded.server.loads) == 1


def test_not_ready_before_the_live_versions_are_loaded_or_when_the_engine_is_dead(
    guarded: Parts,
) -> None:
    before = run(guarded.layer, "GET", "/ready", key=USE)
    assert before.status == 503 and before.json["missing"] == {"qa@1": "loading"}
    assert asyncio.run(chat(guarded.layer, "qa", key=USE)).status == 200
    assert run(guarded.layer, "GET", "/ready").status == 200
    guarded.server.healthy = False
    assert run(guarded.layer, "GET", "/ready").status == 503


def test_readiness_names_adapters_only_to_those_who_may_use_them(guarded: Parts) -> None:
    for key in (None, "x"):
        assert run(guarded.layer, "GET", "/ready", key=key).json == {"ready": False}
    for key in (USE, ADMIN):
        told = run(guarded.layer, "GET", "/ready", key=key).json
        assert told == {"ready": False, "missing": {"qa@1": "loading"}, "refused": {}}


def test_models_are_what_a_request_may_name_and_nothing_of_the_servers_own(
    guarded: Parts,
) -> None:
    guarded.publish("qa", 2)
    guarded.publish("other", 3)
    assert asyncio.run(chat(guarded.layer, "qa", key=USE)).status == 200
    got = run(guarded.layer, "GET", "/v1/models", key=USE)
    names = [card["id"] for card in got.json["data"]]
    assert names == ["tiny", "other@1", "qa", "qa@1", "qa@2"]
    assert "/" not in got.body.decode()
    for name in names:
        assert asyncio.run(chat(guarded.layer, name, key=USE)).status == 200


def test_a_server_has_the_routes_of_its_task_and_administration_needs_its_key() -> None:
    tasks = {
        "text": {"/v1/chat/completions", "/v1/completions", "/tokenize"},
        "image": {"/v1/images/generations"},
    }
    assert frozenset.union(*map(frozenset, tasks.values())) == routes.MODEL_ROUTES
    everything = frozenset().union(*routes.ROUTES.values())
    for task, asked in tasks.items():
        found = {}
        for path in everything:
            for method in ("GET", "POST", "PUT", "HEAD", "get"):
                with suppress(Refused):
                    found[method, path] = routes.access(method, path, task)
        assert {path for method, path in found if method == "POST"} >= asked
        assert not {path for _, path in found} & (routes.MODEL_ROUTES - asked)
        assert {method for method, _ in found} == {"GET", "POST"}
        for (method, path), access in found.items():
            if path.startswith("/admin/"):
                assert access is Access.ADMIN
                assert (method == "GET") == (path == "/admin/history")
            elif path in ("/", "/health", "/ready", "/version"):
                assert (method, access) == ("GET", Access.OPEN)
            else:
                assert access is Access.USE
                assert (method == "POST") == (path in asked)
    assert routes.access("POST", "/tokenize") is Access.USE, "text, where nothing else is said"


def test_a_refused_route_is_named_shortly() -> None:
    with pytest.raises(Refused) as caught:
        routes.access("GET", "/" + "x" * 500)
    assert caught.value.status == 404 and caught.value.code == "unknown_route"
    assert caught.value.message == f"unknown route /{'x' * 199}"
    with pytest.raises(Refused) as caught:
        routes.access("Z" * 500, "/health")
    assert caught.value.status == 405 and caught.value.headers == [(b"allow", b"GET")]
    assert caught.value.message == f"/health takes GET, not {'Z' * 20}"
