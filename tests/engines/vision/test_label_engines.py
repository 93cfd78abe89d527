"""CLIP and BLIP with the real transformers: the same results as by hand, in any batch."""

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

import numpy as np
import pytest
from support import vision_folders
from support.drawn import scene

from llm_lora.errors import UserError
from llm_lora.label import candidates
from llm_lora.label.candidates import Choice, Part
from llm_lora.vision import models as vision_models

PICTURES = [scene(seed, (48, 40)) for seed in range(5)]
PARTS = (
    Part("subject", ("a red circle", "a blue square", "a green star", "the house")),
    Part("place", ("on a tree", "of the big house")),
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_folders.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_folders.blip(tmp_path_factory.mktemp("blip"))


def test_clip_chooses_what_the_model_finds_likeliest(clip: Path) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    from llm_lora.engines.vision.captioning import ZeroShot

    labels = ZeroShot(vision_models.resolve(str(clip), "clip"), PARTS)(PICTURES)
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=PICTURES, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(clip)
    shares = []
    for part in PARTS:
        tokens = tokenizer(list(part.texts), padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**tokens, pixel_values=pixels["pixel_values"]).logits_per_image
        shares.append(logits.softmax(-1).numpy())
    for index, label in enumerate(labels):
        expected = [PARTS[0].texts[int(shares[0][index].argmax())]]
        sure = [shares[0][index].max()]
        if shares[1][index].max() >= 0.5:
            expected.append(PARTS[1].texts[int(shares[1][index].argmax())])
            sure.append(shares[1][index].max())
        assert label.caption == ", ".join(expected)
        assert label.score == pytest.approx(min(sure), abs=2e-3)
    assert len({label.caption for label in labels}) > 1, "the test would see a constant"


def test_clip_points_do_not_depend_on_the_batch(clip: Path) -> None:
    from llm_lora.engines.vision.clip import Clip

    model = Clip(vision_models.resolve(str(clip), "clip"), device="cpu")
    whole = model.images(PICTURES).numpy()
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    assert np.allclose(whole, model.images(PICTURES, batch_size=2).numpy(), atol=1e-5)
    texts = ["a red circle", "a", "a very long text " * 20]
    assert np.allclose(
        model.texts(texts).numpy(), model.texts(texts, batch_size=1).numpy(), atol=1e-5
    )
    assert model.images([]).shape == (0, 16)


def test_the_embedded_judge_can_label(tmp_path: Path) -> None:
    from llm_lora.engines.vision.captioning import ZeroShot

    labels = ZeroShot(vision_models.resolve("tiny", "clip"), PARTS)(PICTURES)
    assert all(label.caption.split(", ")[0] in PARTS[0].texts for label in labels)


def test_blip_describes_each_picture_as_it_would_alone(blip: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

    from llm_lora.engines.vision.captioning import Captioner

    labels = Captioner(vision_models.resolve(str(blip), "blip"))(PICTURES)
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipImageProcessorPil.from_pretrained(blip)
    tokenizer = AutoTokenizer.from_pretrained(blip)
    for picture, label in zip(PICTURES, labels, strict=True):
        with torch.inference_mode():
            tokens = model.generate(
                processor(images=[picture], return_tensors="pt")["pixel_values"],
                max_length=50,
                num_beams=3,
                do_sample=False,
            )
        assert label.caption == tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
        assert label.caption and set(label.caption.split()) <= {*vision_folders.WORDS, "[UNK]"}
        assert label.score is not None and 0 < label.score <= 1
    assert len({label.caption for label in labels}) > 1, "the test would see a constant"


# Finding models


def test_models_that_do_not_fit_are_refused(clip: Path, tmp_path: Path) -> None:
    assert vision_models.resolve("tiny", "clip").path == vision_models.TINY
    for name, kind, what in (
        (str(clip), "blip", "this is a model of type clip, not blip"),
        ("tiny", "blip", "this is a model of type clip, not blip"),
        ("./nope", "clip", "no such folder"),
        ("owner/nope", "clip", "the hub cannot be reached"),
    ):
        with pytest.raises(UserError, match=what):
            vision_models.resolve(name, kind)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only pickled weights"):
        vision_models.resolve(str(tmp_path), "clip")


class Hub:
    """A hub with one model in two revisions: pickled weights, and a pull request of safetensors."""

    def __init__(self, folder: Path, author: str) -> None:
        prepares = next(path.name for path in sorted(folder.glob("*processor_config.json")))
        described = ["config.json", prepares]
        self.revisions = {
            "main": ("a" * 40, [*described, "pytorch_model.bin"]),
            "refs/pr/7": ("b" * 40, [*described, "model.safetensors"]),
        }
        self.folder, self.author = folder, author
        self.asked: list[str] = []

    def json(self, path: str) -> object | None:
        base = "/api/models/old/model"
        if path.startswith(f"{base}/discussions"):
            return {"discussions": [self.discussion()], "count": 1, "start": 0}
        for revision, (commit, names) in self.revisions.items():
            if path == f"{base}/tree/{commit}":
                return [
                    {"type": "file", "path": name, "oid": commit, "size": len(self.data(name))}
                    for name in names
                ]
            if path == f"{base}/revision/{revision.replace('/', '%2F')}" or (
                path == base and revision == "main"
            ):
                siblings = [{"rfilename": name} for name in names]
                return {"id": "old/model", "sha": commit, "siblings": siblings}
        return None

    def data(self, name: str) -> bytes:
        return b"P" if name.endswith(".bin") else (self.folder / name).read_bytes()

    def discussion(self) -> dict[str, object]:
        return {
            "num": 7,
            "title": "Adding `safetensors` variant of this model",
            "status": "open",
            "isPullRequest": True,
            "author": {"name": self.author},
            "createdAt": "2023-01-01T00:00:00.000Z",
            "repo": {"name": "old/model", "type": "model"},
        }

    @contextmanager
    def serving(self) -> Iterator[str]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                value = hub.json(self.path.partition("?")[0])
                if value is not None:
                    return self.answer(json.dumps(value).encode(), {})
                for commit, names in hub.revisions.values():
                    for name in names:
                        if self.path == f"/old/model/resolve/{commit}/{name}":
                            about = {"X-Repo-Commit": commit, "ETag": f'"{commit[:9]}{name}"'}
                            return self.answer(hub.data(name), about)
                return self.answer(b"{}", {}, 404)

            do_HEAD = do_GET

            def answer(self, data: bytes, about: dict[str, str], status: int = 200) -> None:
                self.send_response(status)
                for key, value in {**about, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize("author", ["SFconvertbot", "a-stranger"])
def test_only_the_hubs_own_conversion_of_pickled_weights_is_taken(
    clip: Path, tmp_path: Path, author: str
) -> None:
    hub = Hub(clip, author)
    code = (
        "from llm_lora.vision import models as vision_models\n"
        "from llm_lora.errors import UserError\n"
        "try: print(vision_models.resolve('old/model', 'clip').path.name)\n"
        "except UserError as error: print(error)\n"
    )
    with hub.serving() as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    if author == "SFconvertbot":
        assert done.stdout.strip() == "b" * 40
    else:
        assert "no safetensors weights" in done.stdout
    assert not [path for path in hub.asked if path.endswith(".bin")]


# Candidates


def test_the_built_in_candidates_are_well_formed() -> None:
    parts = candidates.read()
    assert parts[0].name == "subject"
    assert sum(len(part.texts) for part in parts) > 50


def test_candidate_files(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("# mine\na  cat\na dog\n\n[light]\nat night\nby day\n")
    assert candidates.read(path) == (
        Part("caption", ("a cat", "a dog")),
        Part("light", ("at night", "by day")),
    )
    path.write_text("[a]\none\n[b]\nx\ny\nx\n")
    with pytest.raises(UserError) as error:
        candidates.read(path)
    assert [(one.where, one.what) for one in error.value.problems] == [
        (f"{path}:6", "duplicate candidate: x"),
        (f"{path}:1", "part a has 1 candidates"),
    ]
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="no candidates"):
        candidates.read(path)


def test_the_first_part_is_always_said_and_the_others_where_sure() -> None:
    assert candidates.choose(PARTS, [(0.2, 0.3, 0.3, 0.2), (0.5, 0.5)]) == Choice(
        "a blue square, on a tree", 0.3
    )
    parts = (PARTS[1], PARTS[0])
    assert candidates.choose(parts, [(0.4, 0.6), (0.4, 0.3, 0.2, 0.1)]) == Choice(
        "of the big house", 0.6
    )
