"""The review sheet: one page with all pictures and captions, to check and correct."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llm_lora import files
from llm_lora.data import Finding
from llm_lora.data.image import captions
from llm_lora.data.image import files as picture_files
from llm_lora.errors import UserError
from llm_lora.example import Rejected
from llm_lora.files import ASSETS
from llm_lora.label.sheet import Item, Sheet
from llm_lora.report import pages

TEMPLATES = ASSETS / "label_review"

UNSURE = 0.5
"""Score below which a label should be reviewed."""

_THUMBNAIL = 192


@dataclass(frozen=True)
class Card:
    """The card of a picture; `unsure` if a person should review it."""

    name: str
    caption: str
    source: str
    thumbnail: str | None
    unsure: bool


def write(
    path: Path, folder: Path, findings: Sequence[Finding], failed: Sequence[Rejected]
) -> None:
    """Write the sheet of a folder as one self-contained file.

    Args:
        path: the file to write.
        folder: holds the pictures.
        findings: the findings on the captions.
        failed: pictures that could not be labelled, by their path.

    Raises:
        UserError: the folder cannot be read, or the file cannot be written.
    """
    from markupsafe import Markup

    sheet = Sheet(folder)
    reasons = {row.where: row.reason for row in failed}
    with picture_files.bombs_refused(), ThreadPoolExecutor() as pool:
        cards = list(pool.map(lambda item: _card(item, reasons), sheet.items()))
    template = pages.environment(TEMPLATES).get_template("sheet.html.jinja")
    html = template.render(
        folder=str(folder),
        list=sheet.table.path.name,
        findings=findings,
        cards=cards,
        # "<" could end the script element that contains it.
        table=Markup(json.dumps(_table(sheet), ensure_ascii=False).replace("<", "\\u003c")),
    )
    files.write_text(path, html)


def _card(item: Item, reasons: dict[str, str]) -> Card:
    try:
        thumbnail = picture_files.data_url(picture_files.load(item.path), _THUMBNAIL, quality=80)
    except UserError:
        thumbnail = None
    score = item.written.score if item.written is not None else None
    reason = reasons.get(str(item.path))
    if reason is not None:
        source = reason
    elif item.origin == "machine" and item.written is not None:
        sure = f", score {score:.2f}" if score is not None else ""
        source = f"by {item.written.method}, {item.written.model}{sure}"
    elif item.origin == "person":
        source = "by a person" if item.written is None else "changed by a person"
    else:
        source = "no caption yet"
    unsure = reason is not None or not item.caption
    unsure |= item.origin == "machine" and score is not None and score < UNSURE
    return Card(item.name, item.caption, source, thumbnail, unsure)


def _table(sheet: Sheet) -> dict[str, object]:
    """The present list, so that the page can write it back with all its columns."""
    known = {captions.plain_name(name): name for name in sheet.pictures}
    rows = []
    used = set()
    for row in sheet.table.rows:
        name = row.values.get(sheet.table.name)
        plain = captions.plain_name(name.strip()) if isinstance(name, str) else None
        picture = known.get(plain) if plain not in used else None
        used.add(plain)
        rows.append({"picture": picture, "values": row.values})
    table = sheet.table
    return {
        "file": table.path.name,
        "columns": table.columns,
        "name": table.name,
        "text": table.text,
        "rows": rows,
    }
