"""Real training runs: NF4 on this machine, QLoRA, interruption, resumption, reload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Command

from llm_lora import files
from llm_lora.adapter import folder as adapters
from llm_lora.base import text as bases
from llm_lora.base.chat import Chat
from llm_lora.data.text.dataset import Dataset
from llm_lora.engines.shared import loading
from llm_lora.engines.text import batches, tuning
from llm_lora.engines.text import engine as text
from llm_lora.recipe.loading import load
from llm_lora.run import Run

pytestmark = pytest.mark.slow

FILES = ("adapter_model.safetensors", "adapter_config.json")


def weights(run: Path) -> dict[str, str]:
    return {name: files.file_sha256(run / "adapter" / name) for name in FILES}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_that_was_promised(small_run: Path) -> None:
    for name in (
        "recipe.yaml",
        "dataset/train.jsonl",
        "dataset/held_out.jsonl",
        "dataset/quarantine.jsonl",
        "dataset/check.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/llm_lora.json",
        "adapter/answer.schema.json",
        "adapter/chat_template.jinja",
        "metrics.jsonl",
        "answers.jsonl",
        "report.json",
        "report.html",
        "manifest.json",
    ):
        assert (small_run / name).is_file(), name
    assert list((small_run / "tensorboard").iterdir())
    assert not (small_run / "checkpoints").exists()
    assert not list(small_run.rglob("*.bin")) + list(small_run.rglob("*.pt"))


def test_the_output_tells_what_was_decided_and_what_comes_next(small_run: Path) -> None:
    output = (small_run.parent.parent / "output.txt").read_text()
    for part in (
        "base in NF4 with double quantisation: 42 linear layers",
        "train · ",
        "computing in ",
        "adapter of rank 16: ",
        "Held-out answers",
        "adapter      ",
        "report.html",
        "Next: llm-lora chat",
    ):
        assert part in output, part


def test_the_report_has_the_promised_shape(small_run: Path) -> None:
    report = json.loads((small_run / "report.json").read_text())
    assert report["held_out"] == {"seen": 6, "unseen": 6}
    for model in ("base", "adapter"):
        for form in ("unconstrained", "constrained"):
            for part, n in (("seen", 6), ("unseen", 6), ("all", 12)):
                block = report["scores"][model][form][part]
                assert block["n"] == n
                assert {"parsed", "schema_valid", "exact_match", "field_f1"} < block.keys()
                assert block["fields"]["severity"]["kind"] == "closed"
    assert {"name", "threshold", "value", "passed"} <= report["gates"][0].keys()
    assert report["seconds"] > 0 and report["peak_memory_bytes"] > 0


def test_the_adapter_carries_what_serving_needs(small_run: Path) -> None:
    adapter = adapters.read(small_run / "adapter")
    tiny = bases.resolve("tiny")
    adapters.require_base(adapter, tiny)
    assert len(adapter.modules) == 42
    manifest = adapter.manifest
    assert manifest.system == "Read the message and answer with the triage JSON."
    assert manifest.sampling == {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 48}
    assert manifest.chat_template_digest == Chat.load(tiny.path).template_digest
    assert manifest.dataset_fingerprint == Dataset.read(small_run / "dataset").fingerprint
    assert manifest.scores["unconstrained"]["all"]["n"] == 12
    assert manifest.versions["peft"]


def test_the_loss_falls(small_run: Path) -> None:
    losses = [row["loss"] for row in metrics(small_run) if "loss" in row]
    assert losses[-1] < losses[0]


def test_the_same_recipe_gives_the_same_bytes_and_so_does_an_interrupted_run(
    small_run: Path, small_recipe: Path, tmp_path: Path
) -> None:
    command = Command("train", small_recipe, "--runs", tmp_path)
    command.wait_until(lambda: any(tmp_path.glob("small/*/checkpoints/*/complete")))
    command.interrupt()
    code, output = command.finish()
    assert code == 130, output
    assert "Continue with: llm-lora train" in output and output.rstrip().endswith("--resume")
    (run,) = tmp_path.glob("small/2*")
    stopped = int(output.partition("at step ")[2].split()[0])
    assert 4 <= stopped < 12
    assert not (run / "manifest.json").exists() and not (run / "adapter").exists()

    code, output = Command("train", small_recipe, "--runs", tmp_path, "--resume").finish()
    assert code == 0, output
    assert weights(run) == weights(small_run)
    steps = [row["step"] for row in metrics(run)]
    assert steps == sorted(steps)
    assert [row["step"] for row in metrics(small_run) if "validation_loss" in row] == [
        row["step"] for row in metrics(run) if "validation_loss" in row
    ]


def interrupted(recipe: Path, runs: Path, *options: str) -> Path:
    """The folder of a run stopped by Ctrl-C after its first checkpoint."""
    command = Command("train", recipe, "--runs", runs, *options)
    command.wait_until(lambda: any(runs.glob("small/*/checkpoints/*/complete")))
    command.interrupt()
    code, output = command.finish()
    assert code == 130, output
    (run,) = runs.glob("small/2*")
    return run


def test_accumulation_packing_and_dropout_resume_to_the_same_bytes_too(
    small_recipe: Path, tmp_path: Path
) -> None:
    options = ("--set", "train.accumulate=2", "--set", "train.batching=packed")
    options += ("--set", "train.batch_size=4", "--set", "lora.dropout=0.1")
    options += ("--set", "train.evaluate_every=3", "--set", "generate.max_new_tokens=4")
    code, output = Command("train", small_recipe, "--runs", tmp_path / "a", *options).finish()
    assert code == 0, output
    run = interrupted(small_recipe, tmp_path / "b", *options)
    code, output = Command(
        "train", small_recipe, "--runs", tmp_path / "b", *options, "--resume"
    ).finish()
    assert code == 0, output
    assert weights(run) == weights(tmp_path / "a" / "small" / "latest")


def test_a_run_does_not_resume_on_other_data(small_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_recipe.parent, folder)
    run = interrupted(folder / "small.yaml", tmp_path / "runs")
    rows = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(rows[1:]))
    resume = ("train", folder / "small.yaml", "--runs", tmp_path / "runs", "--resume")
    code, output = Command(*resume).finish()
    assert code == 2, output
    assert "changed since this run was interrupted: dataset" in output
    code, output = Command(*resume, "--set", "lora.rank=8").finish()
    assert code == 2, output
    assert "the recipe has changed since this run was interrupted: rank: 8" in output
    assert not (run / "manifest.json").exists()


def test_a_killed_run_is_never_taken_for_finished_and_resumes_to_the_same_adapter(
    small_run: Path, small_recipe: Path, tmp_path: Path
) -> None:
    command = Command("train", small_recipe, "--runs", tmp_path)
    command.wait_until(lambda: any(tmp_path.glob("small/*/checkpoints/*/complete")))
    command.kill()
    (run,) = tmp_path.glob("small/2*")
    assert not (run / "manifest.json").exists()
    # A run must not resume from a checkpoint that the kill left incomplete.
    whole = next(run.glob("checkpoints/*/complete")).parent
    for number, marked in ((998, False), (999, True)):
        torn = whole.with_name(f"checkpoint-{number}")
        shutil.copytree(whole, torn)
        (torn / "trainer_state.json").unlink()
        if not marked:
            (torn / "complete").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')

    code, output = Command("train", small_recipe, "--runs", tmp_path, "--resume").finish()
    assert code == 0, output
    assert weights(run) == weights(small_run)


def test_plain_peft_reloads_the_adapter_to_the_same_logits(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    recipe = load(small_recipe, overrides=["train.max_steps=4"])
    base = bases.resolve("tiny")
    chat = Chat.load(base.path)
    examples = _examples(recipe, chat)
    encoded = chat.encode(examples[0])
    ids = torch.tensor([encoded.input_ids])

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return model.eval()(input_ids=ids).logits

    trained: list[torch.Tensor] = []
    save = tuning.save

    def keep(model: Any, *rest: Any) -> None:
        trained.append(logits(model))
        save(model, *rest)

    monkeypatch.setattr(tuning, "save", keep)
    text.fit(
        recipe,
        examples[:32],
        examples[32:40],
        base,
        chat,
        Run(tmp_path).places,
    )
    fresh = loading.load_base(base, bits=4, precision="auto").model
    plain = logits(fresh)
    reloaded = logits(PeftModel.from_pretrained(fresh, tmp_path / "adapter"))
    assert torch.equal(reloaded, trained[0])
    assert (reloaded - plain).abs().max() > 0.1


def _examples(recipe: Any, chat: Chat) -> Any:
    from llm_lora.data.text import dataset
    from llm_lora.schema.answer import AnswerSchema

    schema = AnswerSchema.load(recipe.data.answer_schema)
    return dataset.prepare(recipe, schema, chat).train


def test_the_loss_counts_the_answer_and_its_end_of_turn_only(small_recipe: Path) -> None:
    recipe = load(small_recipe)
    chat = Chat.load(bases.resolve("tiny").path)
    example = _examples(recipe, chat)[0]
    row = text._row(chat.encode(example))
    scored = [token for token in row["labels"] if token != batches.IGNORED]
    assert chat.decode(scored[:-1]) == example.answer
    assert scored[-1] in chat.eos_ids
    prompt = chat.prompt_ids(example.prompt)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [batches.IGNORED] * len(prompt)


def test_the_base_is_really_nf4_with_double_quantisation() -> None:
    from bitsandbytes.nn import Linear4bit

    loaded = loading.load_base(bases.resolve("tiny"), bits=4, precision="auto")
    layers = [one for one in loaded.model.modules() if isinstance(one, Linear4bit)]
    assert len(layers) == 42
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
        assert layer.weight.dtype == torch.uint8


def test_evaluating_leaves_the_nf4_base_as_it_was() -> None:
    from bitsandbytes.nn import Linear4bit

    model = loading.load_base(bases.resolve("tiny"), bits=4, precision="auto").model.eval()
    layers = [one for one in model.modules() if isinstance(one, Linear4bit)]
    before = [one.weight.data.clone() for one in layers]
    with torch.no_grad():
        model(input_ids=torch.arange(4, 40)[None])
    for layer, packed in zip(layers, before, strict=True):
        assert layer.weight.quant_state.nested
        assert torch.equal(layer.weight.data, packed)


def test_unpacked_answers_are_those_of_the_4_bit_base() -> None:
    ids = torch.arange(4, 60)[None]

    def logits(unpack: bool) -> torch.Tensor:
        model = loading.load_base(bases.resolve("tiny"), bits=4, precision="auto").model.eval()
        if unpack:
            model = model.dequantize().to(torch.bfloat16)
        with torch.inference_mode():
            return model(input_ids=ids).logits.float()

    packed, unpacked = logits(False), logits(True)
    assert (packed.argmax(-1) == unpacked.argmax(-1)).float().mean() > 0.95
    assert (packed - unpacked).abs().max() < 0.25


@pytest.mark.parametrize("concatenated", [False, True])
@pytest.mark.parametrize("items", [None, 77])
def test_the_loss_on_a_cpu_is_trls_loss(
    concatenated: bool, items: int | None, tmp_path: Path
) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    base = bases.resolve("tiny")
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]},
        {"input_ids": [11, 12, 13, 14], "labels": [-100, -100, -100, 14]},
    ]
    trainer = text.PlannedTrainer(
        order=[[0, 1]],
        pad_id=3,
        concatenated=concatenated,
        model=loading.load_base(base, bits=16, precision="fp32").model,
        args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None, report_to=[]),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base.path),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    batch = (batches.concatenate if concatenated else lambda r: batches.pad(r, 3))(rows)

    def gradients(compute: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        trainer.model.zero_grad()
        loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        return loss.detach(), [p.grad for p in trainer.model.parameters() if p.grad is not None]

    ours, our_gradients = gradients(text.PlannedTrainer.compute_loss)
    theirs, their_gradients = gradients(SFTTrainer.compute_loss)
    assert torch.allclose(ours, theirs, rtol=1e-4)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-5)


def test_the_loss_weighs_tokens_as_told(tmp_path: Path) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig

    base = bases.resolve("tiny")
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "weights": [0.0, 0.5, 2.0, 0.0]},
        {"input_ids": [11, 12, 13], "labels": [-100, -100, 13], "weights": [0.0, 0.0, 1.5]},
    ]
    trainer = text.PlannedTrainer(
        order=[[0, 1]],
        pad_id=3,
        concatenated=False,
        model=loading.load_base(base, bits=16, precision="fp32").model,
        args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None, report_to=[]),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base.path),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    (batch,) = trainer.get_train_dataloader()
    by_hand = torch.tensor(0.0)
    with torch.no_grad():
        for row in rows:
            logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            for at, token in enumerate(row["input_ids"][1:], 1):
                surprise = -logits[at - 1].log_softmax(-1)[token]
                by_hand += row["weights"][at] * surprise / 4
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=4)
    assert torch.allclose(loss, by_hand, rtol=1e-4)


def test_stopping_early_depends_only_on_what_checkpoints_hold() -> None:
    from transformers import TrainerControl, TrainerState

    from llm_lora.engines.shared.record import StopEarly

    early = StopEarly(patience=3, every=10)

    def stops(step: int, best: int | None) -> bool:
        control = TrainerControl()
        early.on_save(None, TrainerState(global_step=step, best_global_step=best), control)
        return control.should_training_stop

    assert not stops(10, None) and not stops(39, 10)
    assert stops(40, 10) and stops(50, 10)


def test_json_output_is_json_alone(small_recipe: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "llm_lora.cli", "train", str(small_recipe), "--json"]
    command += ["--runs", str(tmp_path), "--set", "train.max_steps=2"]
    command += ["--set", "train.evaluate_every=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"run", "report"}


def test_an_adapter_is_not_put_on_another_base(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    other = tmp_path / "other"
    shutil.copytree(bases.resolve("tiny").path, other)
    config = json.loads((other / "config.json").read_text())
    files.write_json(other / "config.json", {**config, "rope_theta": 20_000.0})
    recipe = (run / "recipe.yaml").read_text().replace("base: tiny", f"base: {other}")
    (run / "recipe.yaml").write_text(recipe)
    code, output = Command("chat", run, "hello").finish()
    assert code == 2, output
    assert "this adapter was trained on tiny" in output
    assert "Traceback" not in output
