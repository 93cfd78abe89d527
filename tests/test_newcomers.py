"""What people run into with their first pictures: plain messages, all at once, with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import drawn
import pytest
from conftest import RunCommand


@pytest.fixture
def here(tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with some pictures that have captions, and some that have none."""
    monkeypatch.chdir(tmp_path)
    drawn.folder(tmp_path / "pictures", 24)
    drawn.folder(tmp_path / "bare", 3)
    (tmp_path / "bare" / "metadata.csv").unlink()
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x04")
    (tmp_path / "chat.Q4_K_M.gguf").write_bytes(b"GGUF")
    return tmp_path


MISTAKES = {
    "a folder and a base that are not there": (
        "base: ./models/v1-5.safetensors\ndata: {train: my_picturs, held_out: others}",
        "error: ./models/v1-5.safetensors: no such folder or file\n"
        "  → check the path, or name a model on the hub as owner/name\n"
        "error: my_picturs: no such folder\n"
        "  → name the folder that holds the pictures\n"
        "error: others: no such folder\n"
        "  → name the folder that holds the pictures\n",
    ),
    "no captions": (
        "base: tiny\ndata: {train: bare}",
        "error: bare: no usable picture: all 3 were set aside\n"
        "  → put pictures there with metadata.csv, or write captions: llm-lora label bare\n"
        "error: bare/000.png: no caption: neither in the list nor beside the picture "
        "(and 2 more like it)\n",
    ),
    "a pickled base": (
        "base: ./old.ckpt\ndata: {train: pictures}",
        "error: ./old.ckpt: pickled weights (.ckpt), which may run code on loading\n"
        "  → name the .safetensors version of this model\n",
    ),
    "a base for llama.cpp": (
        "base: ./chat.Q4_K_M.gguf\ndata: {train: pictures}",
        "error: ./chat.Q4_K_M.gguf: this is a model for llama.cpp or stable-diffusion.cpp "
        "(GGML/GGUF), which cannot be trained\n"
        "  → name the original model that it was made from, with safetensors weights\n",
    ),
    "slips in the recipe": (
        "base: tiny\ndata: {train: pictures, triger: my style, resolution: 500}\n"
        "lora: {rank: 0}\ntrain: {learning_rate: fast}",
        "error: style.yaml:3: data.resolution must be a whole number from 32 to 4096, a multiple "
        "of 8, not 500\n"
        "error: style.yaml:3: data.triger is not a setting\n  → did you mean data.trigger?\n"
        "error: style.yaml:4: lora.rank must be a whole number from 1 to 512, not 0\n"
        'error: style.yaml:5: train.learning_rate must be a number above 0 up to 10, not "fast"\n',
    ),
    "settings for text": (
        "base: tiny\ndata: {train: pictures, system: Say.}\ngenerate: {temperature: 1}",
        "error: style.yaml:3: data.system is not a setting\n  → it belongs to a text recipe\n"
        "error: style.yaml:4: generate.temperature is not a setting\n"
        "  → it belongs to a text recipe\n",
    ),
    "a file for a folder": (
        "base: tiny\ndata: {train: pictures/000.png}",
        "error: pictures/000.png: this is a file\n  → name the folder that holds the pictures\n",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_at_once_with_the_remedy(
    here: Path, run_command: RunCommand, mistake: str
) -> None:
    recipe, told = MISTAKES[mistake]
    Path("style.yaml").write_text(f"task: image\n{recipe}\n")
    for command in (("data", "check"), ("train",)):
        code, out, err = run_command(*command, "style.yaml")
        assert (code, err) == (2, told)
        assert "Traceback" not in out
    assert not Path("runs").exists()


def test_a_text_recipe_with_settings_for_pictures(here: Path, run_command: RunCommand) -> None:
    Path("chat.yaml").write_text(
        "task: text\nbase: tiny\ndata: {train: a.jsonl, trigger: x}\njudge: {seeds: 3}\n"
    )
    code, _, err = run_command("train", "chat.yaml")
    assert (code, err.count("→ it belongs to an image recipe")) == (2, 2)


def test_what_is_only_noticed_is_told_with_its_place(here: Path, run_command: RunCommand) -> None:
    """A row without its picture and a trigger with a slip stop nothing."""
    with Path("pictures/metadata.csv").open("a") as file:
        file.write("nothere.png,a cat\n")
        for number in (24, 25):
            drawn.scene(number).save(here / "pictures" / f"{number:03}.png")
            file.write(f'{number:03}.png,"my stlye, {drawn.caption(number)}"\n')
    Path("style.yaml").write_text(
        "task: image\nbase: tiny\ndata: {train: pictures, trigger: my style}\n"
    )
    code, out, err = run_command("data", "check", "style.yaml")
    assert (code, err) == (0, "")
    assert "set aside pictures/metadata.csv:26: no such picture: nothere.png" in out
    one_line = " ".join(out.split())
    assert 'captions say "my stlye", which is nearly the trigger "my style"' in one_line
    code, out, _ = run_command("data", "check", "style.yaml", "--json")
    kinds = {finding["kind"] for finding in json.loads(out)["findings"]}
    assert (code, "trigger_misspelt" in kinds) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("label", "my_picturs"), "error: my_picturs: no such folder\n"),
        (("generate", "runs/style/latest"), "error: no base to paint with is named\n"),
        (("generate", "runs/style/latest", "a cat"), "error: runs/style/latest: no run here\n"),
        (("export", "runs/style/latest"), "error: 0 of --peft, --gguf, --ollama, --vllm, --webui"),
        (("recipe", "convert", "style.yml"), "error: style.yml: no such file\n"),
    ],
)
def test_commands_on_what_is_not_there(
    here: Path, run_command: RunCommand, arguments: tuple[str, ...], told: str
) -> None:
    code, out, err = run_command(*arguments)
    assert code == 2
    assert err.startswith(told) and "\n  → " in err
    assert "Traceback" not in out + err
