"""Captions as people write them: read completely, with repairs reported, varied in training."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_lora.data.image import caption_table, captions
from llm_lora.data.image.captions import Captions
from llm_lora.errors import UserError

PICTURES = ("a.png", "b.png", "c.png", "sub/d.png")


def read(folder: Path, text: str | bytes, name: str = "metadata.csv") -> Captions:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return captions.read(folder, PICTURES)


def told(found: Captions) -> dict[str, str]:
    return {name: caption.text for name, caption in found.by_name.items()}


def kinds(found: Captions) -> dict[str, int]:
    return {finding.kind: finding.count for finding in found.findings}


def reasons(found: Captions) -> list[str]:
    return [row.reason for row in found.rejected]


@pytest.mark.parametrize("name", ["filename", "file_name", "image", "Filename", " file_name "])
@pytest.mark.parametrize("text", ["prompt", "text", "caption", "Prompt"])
def test_every_usual_header_is_understood(tmp_path: Path, name: str, text: str) -> None:
    found = read(tmp_path, f"{name},{text}\na.png,a red house\n")
    assert told(found) == {"a.png": "a red house"}
    assert found.by_name["a.png"].where == f"{tmp_path}/metadata.csv:2"
    assert not found.rejected and not found.findings


def test_unquoted_commas_are_joined_again_and_said(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "filename,prompt\n"
        'a.png,"quoted, with, commas"\n'
        "b.png,neon lights, glowing signage, high contrast\n"
        "c.png,10,000 stars,,\n",
    )
    assert told(found) == {
        "a.png": "quoted, with, commas",
        "b.png": "neon lights, glowing signage, high contrast",
        "c.png": "10,000 stars",
    }
    assert kinds(found) == {"unquoted_commas": 2}
    assert found.findings[0].where == f"{tmp_path}/metadata.csv:3"


def test_commas_are_not_guessed_where_other_columns_follow(tmp_path: Path) -> None:
    found = read(
        tmp_path, "file_name,text,artist\na.png,red, blue,me\nb.png,red,you\nc.png,grey,me,\n"
    )
    assert told(found) == {"b.png": "red", "c.png": "grey"}
    assert reasons(found) == ["too many values, quote the caption: 4 values for 3 columns"]
    found = read(tmp_path, "artist,file_name,text\nme,a.png,red, blue\n")
    assert told(found) == {"a.png": "red, blue"}
    found = read(tmp_path, "text,file_name\nred, blue,a.png\n")
    assert told(found) == {"a.png": "red, blue"}


def test_quotes_of_all_kinds(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "file_name,text\r\n"
        'a.png, "red, blue"\r\n'
        'b.png,"a ""big"" house,\r\n  in two lines"\r\n'
        'sub\\d.png,a 5" disk\r\n',
    )
    assert told(found) == {
        "a.png": "red, blue",
        "b.png": 'a "big" house, in two lines',
        "sub/d.png": 'a 5" disk',
    }
    assert not found.findings


def test_a_quote_that_nobody_closed_costs_only_its_own_row(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        'file_name,text\na.png,"red, blue\nb.png,green\nc.png,"a ""good"" one"\nsub/d.png,"x" y\n',
    )
    assert told(found) == {
        "a.png": "red, blue",
        "b.png": "green",
        "c.png": 'a "good" one',
        "sub/d.png": '"x" y',
    }
    assert kinds(found) == {"unquoted_commas": 1, "open_quotes": 2}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_spreadsheets_of_other_countries(tmp_path: Path, delimiter: str) -> None:
    text = "file_name,text\na.png,grün\nb.png,blau\n".replace(",", delimiter)
    for data, encoding in (
        (text.encode("utf-8-sig"), {}),
        (text.encode("utf-16"), {"encoding": 1}),
        (text.encode("cp1252"), {"encoding": 1}),
    ):
        found = read(tmp_path, data)
        assert told(found) == {"a.png": "grün", "b.png": "blau"}
        assert kinds(found) == encoding


def test_chinese_text_in_its_old_encoding(tmp_path: Path) -> None:
    found = read(tmp_path, "filename,prompt\na.png,赛博朋克城市夜景, 霓虹灯\n".encode("gb18030"))
    assert told(found) == {"a.png": "赛博朋克城市夜景, 霓虹灯"}
    assert "gb18030" in found.findings[0].message


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a.png,a red house\n", "no column names the picture"),
        ("file_name,words\na.png,red\n", "no column names the caption"),
        ("file_name,text,prompt\na.png,x,y\n", "more than one column names the caption"),
        (b"file_name,text\n\x81\x00\x01", "this is not text"),
    ],
)
def test_lists_that_say_nothing(tmp_path: Path, data: str | bytes, what: str) -> None:
    with pytest.raises(UserError, match=what):
        read(tmp_path, data)


def test_rows_that_cannot_be_used_are_set_aside_with_a_reason(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "file_name,text\n"
        "a.png,one\n"
        "./a.png,another\n"
        "../secret.png,x\n"
        "/etc/passwd,x\n"
        "C:\\b.png,x\n"
        "gone.png,x\n"
        "b.png,\n"
        ",x\n"
        "c.png\n",
    )
    assert told(found) == {"a.png": "one"}
    lines = [int(row.where.rpartition(":")[2]) for row in found.rejected]
    assert lines == [3, 4, 5, 6, 7, 8, 9, 10]
    assert [reason.partition(": ")[0] for reason in reasons(found)] == [
        "a second caption for a picture",
        *["the path leads out of the folder"] * 3,
        "no such picture",
        "the caption is empty",
        "a row without the name of a picture",
        "the caption is empty",
    ]


def test_json_lines_as_in_imagefolder(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "text": "red,\nblue"},
        {"file_name": "b.png", "text": "x", "artist": 1},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n[1]\n{oops\n{"file_name": "c.png", "text": 3}\n'
    found = read(tmp_path, text, "metadata.jsonl")
    assert told(found) == {"a.png": "red, blue", "b.png": "x"}
    assert [reason[:12] for reason in reasons(found)] == [
        "not a JSON o",
        "not JSON: ex",
        "the caption ",
    ]


def test_two_lists_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="two lists"):
        read(tmp_path, "file_name,text\n")


def test_captions_beside_pictures_fill_what_the_list_leaves(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("not used")
    (tmp_path / "b.txt").write_bytes("grün,\n\n  hell\n".encode("cp1252"))
    (tmp_path / "b.caption").write_text("grün, hell")
    (tmp_path / "sub" / "d.caption").write_text("deep")
    (tmp_path / "c.txt").write_bytes(b"\x00\x01")
    found = read(tmp_path, "file_name,text\na.png,listed\n")
    assert told(found) == {"a.png": "listed", "b.png": "grün, hell", "sub/d.png": "deep"}
    assert kinds(found) == {"unused_captions": 1, "encoding": 1}
    assert reasons(found) == ["the caption cannot be read: this is not text"]


def test_a_list_may_lie_elsewhere(tmp_path: Path) -> None:
    listed = tmp_path / "elsewhere.csv"
    listed.write_text("filename,prompt\na.png,here\n")
    found = captions.read(tmp_path, PICTURES, listed=listed)
    assert told(found) == {"a.png": "here"}


def test_names_of_a_mac_are_found(tmp_path: Path) -> None:
    apart, together = "u\u0308ber.png", "\u00fcber.png"
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{together},x\n")
    assert told(captions.read(tmp_path, [apart])) == {apart: "x"}


words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
lines = st.lists(words, min_size=1, max_size=5).map(" ".join)


@given(st.lists(lines, min_size=4, max_size=4))
@example(['"', '""', "a,b", "'"])
@example(["=1", ";", ",", '",'])
def test_what_a_csv_library_writes_is_read_back(texts: list[str]) -> None:
    import tempfile

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("file_name", "text"), *zip(PICTURES, texts, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), text.getvalue())
        assert told(found) == {
            name: captions.one_line(caption) for name, caption in zip(PICTURES, texts, strict=True)
        }
        table = caption_table.read(Path(folder) / "metadata.csv")
        caption_table.write(table)
        assert told(captions.read(Path(folder), PICTURES)) == told(found)
        assert not found.findings


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(Path(folder), b"file_name,text\n" + data)
        except UserError:
            return
        assert set(found.by_name) <= set(PICTURES)
        assert all(text and text == captions.one_line(text) for text in told(found).values())


# Triggers and variation


def test_the_trigger_goes_in_front_of_what_lacks_it() -> None:
    assert captions.with_trigger("a cat", "ohwx style") == "ohwx style, a cat"
    assert captions.with_trigger("a cat in OHWX style", "ohwx style") == "a cat in OHWX style"
    assert captions.with_trigger("a catalogue", "cat") == "cat, a catalogue"
    assert captions.with_trigger("", "cat") == "cat"
    assert captions.with_trigger("a cat", None) == "a cat"


@given(lines, lines)
def test_the_trigger_is_put_once(caption: str, trigger: str) -> None:
    once = captions.with_trigger(captions.one_line(caption), captions.one_line(trigger))
    assert captions.one_line(trigger).lower() in once.lower()
    if captions.has_trigger(once, trigger):
        assert captions.with_trigger(once, trigger) == once


tag = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)


@given(st.lists(tag, min_size=1, max_size=8), st.integers(0, 9), st.integers(0, 99))
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(
    tags: list[str], keep: int, seed: int
) -> None:
    caption = ", ".join(tags)
    varied = captions.vary(caption, random.Random(seed), shuffle=True, keep=keep)
    assert Counter(captions.tags(varied)) == Counter(tags)
    assert captions.tags(varied)[:keep] == tags[:keep]
    assert captions.vary(caption, random.Random(seed), keep=keep) == caption
    assert captions.vary(caption, random.Random(seed), shuffle=True, keep=keep) == varied


def test_shuffling_reaches_every_order_and_dropout_its_share() -> None:
    rng = random.Random(5)
    orders = Counter(captions.vary("x, a, b, c", rng, shuffle=True, keep=1) for _ in range(600))
    assert len(orders) == 6 and min(orders.values()) > 60
    dropped = sum(captions.vary("x", rng, dropout=0.25) == "" for _ in range(2000))
    assert 420 < dropped < 580
    assert captions.vary("x", rng, dropout=1.0) == ""
