"""Labels go where nothing is; what people wrote stays, whatever happens meanwhile."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from drawn import folder, scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llm_lora import label_review, label_sheet, labelling
from llm_lora.errors import UserError
from llm_lora.findings import Finding
from llm_lora.labelling import Failure, Label, Labeller, Order, Outcome

ORDER = Order("clip", "some/model", batch_size=4)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures without captions."""
    home = folder(tmp_path / "pictures", 10, (40, 40))
    (home / "metadata.csv").unlink()
    return home


class Machine:
    """Labels every picture by its first pixel, and counts what it was shown."""

    def __init__(self, prefix: str = "seen") -> None:
        self.prefix = prefix
        self.batches: list[int] = []
        self.made = 0
        self.meanwhile: Callable[[int], None] = lambda batch: None

    def make(self) -> Labeller:
        self.made += 1
        return self

    def __call__(self, images: Sequence[Image.Image]) -> list[Label | Failure]:
        self.batches.append(len(images))
        self.meanwhile(len(self.batches))
        pixels = [image.getpixel((0, 0)) for image in images]
        return [Label(f"{self.prefix} {pixel}, here", 0.75) for pixel in pixels]

    @property
    def shown(self) -> int:
        return sum(self.batches)


def run(home: Path, machine: Machine, order: Order = ORDER) -> Outcome:
    return labelling.label(home, machine.make, order)


def rows(home: Path) -> list[dict[str, str]]:
    with (home / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def texts(home: Path) -> dict[str, str]:
    return {row["file_name"]: row["text"] for row in rows(home)}


def edit(home: Path, name: str, text: str) -> None:
    """As a person does, in an editor."""
    path = home / "metadata.csv"
    found = rows(home)
    for row in found:
        if row["file_name"] == name:
            row["text"] = text
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)


def test_every_picture_gets_a_caption_in_order(pictures: Path) -> None:
    machine = Machine()
    told = []
    outcome = labelling.label(
        pictures, machine.make, ORDER, lambda done, total: told.append((done, total))
    )
    assert (outcome.written, outcome.people, outcome.machine) == (10, 0, 0)
    assert machine.batches == [4, 4, 2] and told == [(0, 10), (4, 10), (8, 10), (10, 10)]
    assert list(texts(pictures)) == [f"{i:03}.png" for i in range(10)]
    with Image.open(pictures / "003.png") as image:
        assert texts(pictures)["003.png"] == f"seen {image.getpixel((0, 0))}, here"
    assert outcome.path == pictures / "metadata.csv"


def test_what_is_done_is_not_done_again_and_nothing_is_loaded_for_it(pictures: Path) -> None:
    run(pictures, Machine())
    before = (pictures / "metadata.csv").read_bytes()
    again = Machine("other")
    outcome = run(pictures, again)
    assert again.made == 0 and outcome.written == 0 and outcome.machine == 10
    assert (pictures / "metadata.csv").read_bytes() == before


def test_a_persons_captions_stay_also_with_redo(pictures: Path) -> None:
    (pictures / "metadata.csv").write_text('filename,prompt,mine\n002.png,"by hand, first",7\n')
    (pictures / "004.txt").write_text("beside by hand")
    outcome = run(pictures, Machine())
    assert (outcome.written, outcome.people) == (8, 2)
    with (pictures / "metadata.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0] == {"filename": "002.png", "prompt": "by hand, first", "mine": "7"}
    assert "004.png" not in [row["filename"] for row in found] and len(found) == 9
    again = Machine("anew")
    outcome = run(pictures, again, Order("clip", "other/model", redo=True))
    assert (outcome.written, outcome.people, again.shown) == (8, 2, 8)
    text = (pictures / "metadata.csv").read_text()
    assert '"by hand, first"' in text and "seen" not in text


def test_edits_after_labelling_are_a_persons(pictures: Path) -> None:
    run(pictures, Machine())
    edit(pictures, "001.png", "mended by hand")
    edit(pictures, "002.png", "")
    outcome = run(pictures, Machine("filled"))
    assert (outcome.written, outcome.people, outcome.machine) == (1, 1, 8)
    assert texts(pictures)["001.png"] == "mended by hand"
    assert texts(pictures)["002.png"].startswith("filled")
    run(pictures, Machine("anew"), Order("blip", "b", redo=True))
    found = texts(pictures)
    assert found["001.png"] == "mended by hand"
    assert sum(text.startswith("anew") for text in found.values()) == 9


def test_redo_with_the_same_settings_has_nothing_to_do(pictures: Path) -> None:
    run(pictures, Machine())
    same = Machine("anew")
    again = Order("clip", "some/model", redo=True)
    assert run(pictures, same, again).written == 0 and same.made == 0
    for other in (
        Order("blip", "some/model", redo=True),
        Order("blip", "other", redo=True),
        Order("blip", "other", details="other candidates", redo=True),
        Order("blip", "other", details="other candidates", trigger="sks", redo=True),
    ):
        assert run(pictures, Machine(repr(other)[:40]), other).written == 10


def test_the_trigger_is_put_once(pictures: Path) -> None:
    run(pictures, Machine("sks, in front"), Order("clip", "m", trigger="sks"))
    assert all(text.startswith("sks, in front") for text in texts(pictures).values())
    run(pictures, Machine(), Order("clip", "m2", trigger="ohwx style", redo=True))
    assert all(text.startswith("ohwx style, seen") for text in texts(pictures).values())


def test_a_changed_picture_is_labelled_again(pictures: Path) -> None:
    run(pictures, Machine())
    scene("another", (40, 40)).save(pictures / "005.png")
    scene("new", (40, 40)).save(pictures / "new.png")
    machine = Machine("again")
    assert run(pictures, machine).written == 2
    found = texts(pictures)
    assert found["005.png"].startswith("again") and found["new.png"].startswith("again")


def test_what_a_person_writes_meanwhile_is_kept(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "_SAVE_SECONDS", 0.0)
    machine = Machine()

    def person(batch: int) -> None:
        if batch == 2:
            edit(pictures, "001.png", "changed meanwhile")
            with (pictures / "metadata.csv").open("a") as file:
                file.write("009.png,written meanwhile\n")

    machine.meanwhile = person
    run(pictures, machine)
    found = texts(pictures)
    assert found["001.png"] == "changed meanwhile" and found["009.png"] == "written meanwhile"
    assert len(rows(pictures)) == 10


def test_what_fails_is_told_and_the_rest_goes_on(pictures: Path) -> None:
    (pictures / "000.png").write_bytes(b"\x89PNG broken")
    whole = (pictures / "001.png").read_bytes()
    (pictures / "001.png").write_bytes(whole[: len(whole) // 2])

    class Moody(Machine):
        def __call__(self, images: Sequence[Image.Image]) -> list[Label | Failure]:
            said = super().__call__(images)
            return [Failure("refused"), Label(" \n"), *said[2:]]

    outcome = run(pictures, Moody(), Order("vlm", "m", batch_size=10))
    assert {Path(row.where).name: row.reason.partition(":")[0] for row in outcome.failed} == {
        "000.png": "broken",
        "001.png": "the picture cannot be read",
        "002.png": "refused",
        "003.png": "the model said nothing",
    }
    assert outcome.written == 6 and len(rows(pictures)) == 6
    assert run(pictures, Machine()).written == 2, "what failed is tried again"


def test_an_interruption_keeps_what_was_labelled(pictures: Path) -> None:
    machine = Machine()

    def stop(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    machine.meanwhile = stop
    with pytest.raises(KeyboardInterrupt):
        run(pictures, machine)
    assert len(rows(pictures)) == 4
    rest = Machine()
    assert run(pictures, rest).written == 6 and rest.shown == 6


def test_a_kill_between_the_two_files_makes_no_label_a_persons(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is written first; then the power goes."""
    run(pictures, Machine("first"))

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("llm_lora.caption_table.write", cut)
        with pytest.raises(KeyboardInterrupt):
            run(pictures, Machine("second"), Order("blip", "b", redo=True))
    assert all(text.startswith("first") for text in texts(pictures).values())
    outcome = run(pictures, Machine("second"), Order("blip", "b", redo=True))
    assert (outcome.written, outcome.people) == (10, 0)
    assert all(text.startswith("second") for text in texts(pictures).values())


def test_lists_that_cannot_be_written_back_are_refused(pictures: Path) -> None:
    listed = pictures / "metadata.csv"
    listed.write_text("file_name,text,mine\n000.png,red, blue,1\n001.png,x,2\n")
    with pytest.raises(UserError, match="too many values") as error:
        run(pictures, Machine())
    assert error.value.problems[0].where == f"{listed}:2"
    assert listed.read_text().endswith("001.png,x,2\n")
    for header, told in (
        ("file_name,text,note,note", "more than one column is named note"),
        ("file_name,text,,", "more than one column has no name"),
    ):
        listed.write_text(f"{header}\n000.png,,first,second\n")
        with pytest.raises(UserError, match=f"{told}.*; rename or remove one") as error:
            run(pictures, Machine())
        assert error.value.problems[0].where == f"{listed}:1"
        assert listed.read_text().endswith("000.png,,first,second\n")
    listed.unlink()
    (pictures / label_sheet.MEMORY).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        run(pictures, Machine())
    with pytest.raises(UserError, match="no such folder"):
        run(pictures / "nope", Machine())


def test_json_lines_keep_their_form_and_other_keys(pictures: Path) -> None:
    listed = pictures / "metadata.jsonl"
    listed.write_text('{"file_name": "001.png", "text": "by hand", "n": [1]}\n')
    assert run(pictures, Machine()).written == 9
    found = [json.loads(line) for line in listed.read_text().splitlines()]
    assert found[0] == {"file_name": "001.png", "text": "by hand", "n": [1]}
    assert len(found) == 10 and not (pictures / "metadata.csv").exists()


def test_a_messy_list_is_mended_on_the_way(pictures: Path) -> None:
    data = "filename;prompt\n001.png;grün, hell\ngone.png;weg\n".encode("cp1252")
    (pictures / "metadata.csv").write_bytes(data)
    run(pictures, Machine())
    with (pictures / "metadata.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found[:2] == [
        {"filename": "001.png", "prompt": "grün, hell"},
        {"filename": "gone.png", "prompt": "weg"},
    ]
    assert len(found) == 11


def test_two_at_a_time_are_one_too_many(pictures: Path) -> None:
    machine = Machine()

    def second(batch: int) -> None:
        with pytest.raises(UserError, match="another process is labelling"):
            run(pictures, Machine())

    machine.meanwhile = second
    assert run(pictures, machine).written == 10


steps = st.lists(
    st.one_of(
        st.tuples(st.just("label"), st.sampled_from(["a", "b"]), st.booleans()),
        st.tuples(st.just("edit"), st.integers(0, 3), st.sampled_from(["by hand", "", "mine"])),
    ),
    max_size=7,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_no_order_of_events_overwrites_a_person(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, object, object]]
) -> None:
    home = folder(tmp_path_factory.mktemp("p") / "pictures", 4, (16, 16))
    (home / "metadata.csv").unlink()
    people: dict[str, str] = {}
    for kind, first, second in events:
        if kind == "label":
            run(home, Machine(f"{first}"), Order("clip", str(first), redo=bool(second)))
        elif (home / "metadata.csv").exists():
            name = f"{first:03}.png"
            edit(home, name, str(second))
            people.pop(name, None)
            if second:
                people[name] = str(second)
        if (home / "metadata.csv").exists():
            found = texts(home)
            assert all(found[name] == text for name, text in people.items())
    shutil.rmtree(home)


# The review sheet


def test_the_review_sheet_is_one_file_with_everything(pictures: Path, tmp_path: Path) -> None:
    run(pictures, Machine("</script><b>&"))
    edit(pictures, "001.png", 'by "hand", <i>')
    (pictures / "003.png").write_bytes(b"broken")
    edit(pictures, "004.png", "")
    sheet = tmp_path / "review.html"
    outcome = run(pictures, Machine(), Order("clip", "some/model", redo=False))
    edit(pictures, "004.png", "")
    findings = [Finding("long_captions", "captions <are> long", 2, "a.png")]
    label_review.write(sheet, pictures, findings, outcome.failed)
    page = sheet.read_text()
    assert page.count("<article") == 10 and page.count("data:image/jpeg;base64,") == 9
    assert "http" not in page and page.count("</script>") == 2
    assert "captions &lt;are&gt; long" in page and "by &#34;hand&#34;, &lt;i&gt;" in page
    assert "changed by a person" in page and "by clip, some/model, score 0.75" in page
    assert "no caption yet" in page and "not a picture" in page
    assert page.count('class="unsure"') == 2
    inside = page.partition('id="table">')[2].partition("</script>")[0]
    table = json.loads(inside)
    assert table["columns"] == ["file_name", "text"] and len(table["rows"]) == 10
    assert table["rows"][1] == {
        "picture": "001.png",
        "values": {"file_name": "001.png", "text": 'by "hand", <i>'},
    }
