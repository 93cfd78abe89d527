"""Inlining of files that a schema refers to.

An adapter carries one schema, and decoders read one document, so the schema must be
self-contained. Only files in the schema's folder and below are read; nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llm_lora import files
from llm_lora.errors import Problem, UserError
from llm_lora.schema import json_text as jsontext
from llm_lora.schema.json_text import NotJson
from llm_lora.schema.keywords import Schema
from llm_lora.schema.subschemas import Node, Subschemas

Check = Callable[[Schema, str, str], list[Problem]]
"""Finds the problems of a document, given its text and its file name."""

_IDENTIFIERS = ("$id", "$anchor", "$schema")


def bundled(path: Path, text: str, document: Schema, *, siblings: bool, check: Check) -> str:
    """The text of a schema, with the files that it refers to added to its definitions.

    A schema that refers to no file is returned unchanged. A reference without a target stays as it
    is.

    Args:
        path: the file of the schema.
        text: its content.
        document: the same, parsed; modified in place.
        siblings: as for `Subschemas`.
        check: checks each file that is inlined.

    Raises:
        UserError: a referenced file cannot be read, or is not a schema of the same draft.
    """
    bundle = _Bundle(path, document, siblings, check)
    bundle.take_in(bundle.root)
    if not bundle.names:
        return text
    bundle.rewrite()
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


class _Bundle:
    def __init__(self, path: Path, document: Schema, siblings: bool, check: Check) -> None:
        self.root = path.resolve()
        self.names: dict[Path, str] = {}
        self._siblings, self._check = siblings, check
        self._draft = document.get("$schema")
        self._parts = {self.root: Subschemas(document, siblings=siblings)}
        self._under = "$defs" if siblings else "definitions"

    def take_in(self, file: Path) -> None:
        """Read every file that a document refers to, directly or indirectly."""
        for _, reference, remote in list(self._parts[file].unresolved()):
            found = self._file(file, reference) if remote else None
            if found is not None and found not in self._parts:
                self._parts[found] = self._read(found)
                self.names[found] = self._name(found)
                self.take_in(found)

    def rewrite(self) -> None:
        """Inline the files and rewrite the references to point into the document."""
        changed = [
            (node, self._within(file, node))
            for file, parts in self._parts.items()
            for node in parts.nodes()
            if isinstance(node.schema.get("$ref"), str)
        ]
        for node, reference in changed:
            node.schema["$ref"] = reference
        definitions = self._parts[self.root].root.schema.setdefault(self._under, {})
        for file, name in self.names.items():
            for node in self._parts[file].nodes():
                for keyword in _IDENTIFIERS:
                    node.schema.pop(keyword, None)
            definitions[name] = self._parts[file].root.schema

    def _within(self, file: Path, node: Node) -> str:
        """A reference as it reads in the bundled document."""
        reference = str(node.schema["$ref"])
        target = self._parts[file].target(node)
        if target is None:
            found = self._file(file, reference)
            if found is None or found not in self._parts:
                return reference
            fragment = Schema({"$ref": f"#{reference.partition('#')[2]}"})
            file, target = found, self._parts[found].target(Node((), fragment))
        elif file == self.root:
            return reference
        if target is None:
            return reference
        if file == self.root:
            return target.pointer
        return Node((self._under, self.names[file], *target.place), Schema({})).pointer

    def _file(self, origin: Path, reference: str) -> Path | None:
        """The file that a reference names; None if it is not in the schema's folder or below."""
        try:
            address = urlsplit(reference)
            if address.scheme or address.netloc or address.query or not address.path:
                return None
            found = (origin.parent / unquote(address.path)).resolve()
            beside = found.is_relative_to(self.root.parent) and found.is_file()
        except (OSError, ValueError):  # Not a URI, or not a possible file name.
            return None
        return found if beside else None

    def _read(self, file: Path) -> Subschemas:
        text = files.read_text(file)
        try:
            parsed = jsontext.parse(text)
        except NotJson as error:
            raise UserError(f"not JSON: {error}", where=str(file), fix="correct it") from None
        if not isinstance(parsed, dict):
            raise UserError("a schema must be a JSON object", where=str(file), fix="write one")
        document = Schema(parsed)
        if document.get("$schema", self._draft) != self._draft:
            fix = "use the same draft of JSON Schema in both"
            raise UserError(
                "$schema differs from that of the referring schema", where=str(file), fix=fix
            )
        if problems := self._check(document, text, str(file)):
            raise UserError(problems)
        parts = Subschemas(document, siblings=self._siblings)
        if any("$dynamicRef" in node.schema for node in parts.nodes()):
            fix = "use $ref, or copy the file into $defs"
            raise UserError("$dynamicRef in a referenced file", where=str(file), fix=fix)
        return parts

    def _name(self, file: Path) -> str:
        taken = {*self._parts[self.root].root.schema.get(self._under, {}), *self.names.values()}
        stem = file.name.partition(".")[0] or "file"
        numbered = (f"{stem}_{number}" for number in range(2, len(taken) + 3))
        return next(name for name in (stem, *numbered) if name not in taken)
