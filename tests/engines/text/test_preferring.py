"""DPO and GRPO, really done on the adapter of a small run: start, reference, resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Command

from llm_lora import files
from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.data.text.dataset import Dataset
from llm_lora.engines.text import engine as text
from llm_lora.engines.text.answers import load_trained
from llm_lora.engines.text.preferring import _encoded
from llm_lora.errors import UserError
from llm_lora.example import Example
from llm_lora.progress import Fit, Interrupted, Progress
from llm_lora.recipe.loading import load
from llm_lora.run import Run
from llm_lora.schema.answer import AnswerSchema
from llm_lora.scores.preference import Pair

pytestmark = pytest.mark.slow

BASE = bases.resolve("tiny")
CHAT = Chat.load(BASE.path)
WEIGHTS = "adapter_model.safetensors"
SETTINGS = (
    "train.batch_size=4",
    "train.warmup=0",
    "train.schedule=constant",
    "prefer.samples=2",
    "prefer.learning_rate=1.0e-3",
    "prefer.save_every=1",
    "prefer.prompts=8",
)


def examples(run: Path) -> list[Example]:
    return list(Dataset.read(run / "dataset").train[:8])


def made_pairs(found: list[Example]) -> list[Pair]:
    """The training answer against one with the wrong severity."""
    pairs = []
    for one in found:
        answer = json.loads(one.answer)
        answer["severity"] = "mild" if answer["severity"] != "mild" else "severe"
        worse = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        pairs.append(Pair(one.id, one.answer, worse, 2.0, 1.9, ended=True))
    return pairs


class Work:
    """Trains in a folder of its own, from the adapter of a run."""

    def __init__(self, recipe: Path, run: Path, folder: Path, method: str) -> None:
        self.run, self.folder, self.method = run, folder, method
        settings = (*SETTINGS, f"train.method={method}")
        self.recipe = load(recipe, overrides=settings)

    def go(self, *, resume: bool = False, listener: Callable[[Progress], None] = print) -> Fit:
        found = examples(self.run)
        common: dict[str, Any] = {
            "places": Run(self.folder).places,
            "start": self.run / "adapter",
            "resume": resume,
            "listener": listener,
        }
        if self.method == "dpo":
            return text.prefer(self.recipe, found, made_pairs(found), BASE, CHAT, **common)
        schema = AnswerSchema.load(self.run / "adapter" / "answer.schema.json")
        return text.reinforce(self.recipe, found, schema, BASE, CHAT, max_new_tokens=12, **common)

    @property
    def digest(self) -> str:
        return files.file_sha256(self.folder / "adapter" / WEIGHTS)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = files.read_text(self.folder / "metrics.jsonl").splitlines()
        return [json.loads(line) for line in lines]


def interrupted_and_resumed(work: Work) -> None:
    """Ctrl-C after the first step, as it reaches a process; then to the end."""
    import os
    import signal

    def stop(progress: Progress) -> None:
        if progress.done == 1 and not (work.folder / "stopped").exists():
            (work.folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGINT)

    work.folder.mkdir()
    with pytest.raises(Interrupted) as caught:
        work.go(listener=stop)
    assert caught.value.step < caught.value.total
    assert not (work.folder / "adapter").exists()
    work.go(resume=True)


@pytest.fixture(scope="module", autouse=True)
def rewards_that_differ() -> Iterator[None]:
    """The small run's adapter can say nothing that the judge would give a point for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "llm_lora.engines.text.rewarding.reward", lambda _, __, answer: answer.count("s") / 10
        )
        yield


@pytest.fixture(scope="module", params=["dpo", "grpo"])
def done(
    request: pytest.FixtureRequest,
    small_recipe: Path,
    small_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Work, Fit]:
    folder = tmp_path_factory.mktemp(request.param)
    work = Work(small_recipe, small_run, folder, request.param)
    return work, work.go()


def test_an_interrupted_training_resumes_to_the_same_bytes(
    done: tuple[Work, Fit], small_recipe: Path, tmp_path: Path
) -> None:
    work, fit = done
    again = Work(small_recipe, work.run, tmp_path / "again", work.method)
    interrupted_and_resumed(again)
    assert again.digest == work.digest
    assert [row["step"] for row in again.metrics] == [row["step"] for row in work.metrics]
    assert fit.steps == fit.planned_steps > 1


def test_a_training_that_was_cut_off_behind_its_last_step_is_only_saved(
    done: tuple[Work, Fit],
) -> None:
    work, fit = done
    before = work.digest
    assert work.go(resume=True).steps == fit.steps
    assert work.digest == before


def test_the_adapter_is_one_like_any_other_and_has_learned(done: tuple[Work, Fit]) -> None:
    work, fit = done
    assert {path.name for path in (work.folder / "adapter").iterdir()} == {
        WEIGHTS,
        "adapter_config.json",
    }
    config = json.loads(files.read_text(work.folder / "adapter" / "adapter_config.json"))
    start = json.loads(files.read_text(work.run / "adapter" / "adapter_config.json"))
    assert config | {"inference_mode": True} == start | {"inference_mode": True}
    assert work.digest != files.file_sha256(work.run / "adapter" / WEIGHTS)
    assert asdict(fit)["tokens"] > 0


def lead(adapter: Path, run: Path) -> float:
    """By how much the chosen answers are likelier than the rejected, in nats, on average."""
    model = load_trained(BASE, adapter=adapter, bits=4, precision="auto").model
    found = examples(run)
    total = 0.0
    for row in _encoded(found, made_pairs(found), CHAT, print):
        for sign, answer in ((1, row["chosen_ids"]), (-1, row["rejected_ids"])):
            ids = torch.tensor([row["prompt_ids"] + answer])
            with torch.inference_mode():
                logs = model(input_ids=ids).logits.float().log_softmax(-1)[0]
            taken = logs[:-1].gather(1, ids[0, 1:, None])[-len(answer) :]
            total += sign * float(taken.sum())
    return total / len(found)


@pytest.mark.parametrize("done", ["dpo"], indirect=True)
def test_dpo_starts_where_the_reference_stands_and_widens_the_lead(done: tuple[Work, Fit]) -> None:
    work, _ = done
    # Nothing sets the two apart yet: the loss of a coin's toss.
    assert work.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert lead(work.folder / "adapter", work.run) > lead(work.run / "adapter", work.run)


def test_too_few_prompts_for_a_step_are_refused(
    small_recipe: Path, small_run: Path, tmp_path: Path
) -> None:
    work = Work(small_recipe, small_run, tmp_path, "grpo")
    settings = (*SETTINGS, "train.method=grpo", "train.batch_size=32")
    work.recipe = load(small_recipe, overrides=settings)
    with pytest.raises(UserError, match="do not fill one step of 16 prompts x 2 answers"):
        work.go()


@pytest.mark.long
def test_a_dpo_run_goes_on_from_what_it_has_finished(small_recipe: Path, tmp_path: Path) -> None:
    options = ["--runs", tmp_path, "--set", "train.method=dpo", "--set", "train.max_steps=2"]
    options += ["--set", "train.evaluate_every=2", "--set", "generate.max_new_tokens=8"]
    for setting in (*SETTINGS, "prefer.margin=0"):
        options += ["--set", setting]
    code, output = Command("train", small_recipe, *options).finish()
    assert code == 0, output
    assert "8 pairs from 16 answers to 8 prompts" in output
    run = (tmp_path / "small" / "latest").resolve()
    fit = json.loads(files.read_text(run / "fit.json"))
    assert fit["steps"] == 2 + 2
    assert len(files.read_text(run / "pairs.jsonl").splitlines()) == 8
    before = files.file_sha256(run / "adapter" / WEIGHTS)
    assert before != files.file_sha256(run / "supervised" / WEIGHTS)

    for name in ("fit.json", "manifest.json", f"adapter/{WEIGHTS}"):
        (run / name).unlink()
    pairs = (run / "pairs.jsonl").stat().st_mtime_ns
    code, output = Command("train", small_recipe, *options, "--resume").finish()
    assert code == 0, output
    assert "supervised training had finished already" in output
    assert (run / "pairs.jsonl").stat().st_mtime_ns == pairs
    assert files.file_sha256(run / "adapter" / WEIGHTS) == before
