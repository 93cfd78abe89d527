"""The subschemas of an answer schema by their place, and the targets of references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin

from llm_lora.schema.keywords import IN_PLACE, MANY, REFERENCES, SINGLE, Schema

# Meta-schemas are built into the validator: naming one needs no network.
_BUILT_IN = ("http://json-schema.org/draft-", "https://json-schema.org/draft/")

Place = tuple[str | int, ...]


def _join(base: str, reference: str) -> str:
    """The absolute form of a reference; `urljoin` cannot add a fragment to every base (`urn:`)."""
    if reference.startswith("#"):
        return base + reference
    try:
        return urljoin(base, reference)
    except ValueError:  # Not a URI: it is reported later as a reference that does not exist.
        return reference


@dataclass(frozen=True)
class Node:
    """A subschema and its place; a boolean schema has no keywords, so it is the empty dict."""

    place: Place
    schema: Schema

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer fragment: `#/properties/dose`."""
        tokens = (str(part).replace("~", "~0").replace("/", "~1") for part in self.place)
        return "#" + "".join(f"/{token}" for token in tokens)


class Subschemas:
    """The subschemas of a document.

    `siblings` is false for drafts up to 7, which ignore keywords next to a `$ref`.
    """

    def __init__(self, document: Schema, *, siblings: bool) -> None:
        self.root = Node((), document)
        self.siblings = siblings
        self._bases: dict[Place, str] = {}
        self._resources: dict[str, Node] = {"": self.root}
        self._anchors: dict[tuple[str, str], Node] = {}
        for node, base in self._walk(self.root, ""):
            self._bases[node.place] = base

    def nodes(self) -> Iterator[Node]:
        """Every subschema, the document itself first."""
        found = (self.child(self.root, *place) for place in self._bases)
        yield from (node for node in found if node is not None)

    def child(self, node: Node, *tokens: str | int) -> Node | None:
        """The subschema at `tokens` below a node, if there is one."""
        found: Any = node.schema
        for token in tokens:
            try:
                found = found[token]
            except (KeyError, IndexError, TypeError):
                return None
        if isinstance(found, bool):
            found = {}
        return Node((*node.place, *tokens), Schema(found)) if isinstance(found, dict) else None

    def branches(self, node: Node, keyword: str) -> list[Node]:
        """The subschemas in a list or map keyword of a node, such as `anyOf`."""
        held = node.schema.get(keyword)
        keys: list[Any] = []
        # A keyword such as `items` may hold a list or a single schema; the latter is not a map.
        if isinstance(held, dict) and keyword not in SINGLE:
            keys = list(held)
        elif isinstance(held, list):
            keys = list(range(len(held)))
        found = (self.child(node, keyword, key) for key in keys)
        return [branch for branch in found if branch is not None]

    def below(self, node: Node, keyword: str) -> list[Node]:
        """The subschemas in a keyword of a node, whether it holds one, a list or a map."""
        single = self.child(node, keyword) if keyword in SINGLE else None
        return [single] if single is not None else self.branches(node, keyword)

    def target(self, node: Node, keyword: str = "$ref") -> Node | None:
        """The target of a node's reference; None if it has no reference or no target exists."""
        reference = node.schema.get(keyword)
        if not isinstance(reference, str):
            return None
        uri, _, fragment = _join(self._bases.get(node.place, ""), reference).partition("#")
        start = self._resources.get(uri)
        if start is None or not fragment:
            return start
        if not fragment.startswith("/"):
            return self._anchors.get((uri, fragment))
        tokens: list[str | int] = []
        found: Any = start.schema
        for text in unquote(fragment).split("/")[1:]:
            token = text.replace("~1", "/").replace("~0", "~")
            tokens.append(int(token) if isinstance(found, list) and token.isdigit() else token)
            try:
                found = found[tokens[-1]]
            except (KeyError, IndexError, TypeError):
                return None
        return self.child(start, *tokens)

    def unresolved(self) -> Iterator[tuple[Node, str, bool]]:
        """Each reference without a target: its node, its text, and whether it names another
        document."""
        for place, base in self._bases.items():
            node = self.child(self.root, *place)
            for keyword in REFERENCES:
                reference = node.schema.get(keyword) if node else None
                if node is None or not isinstance(reference, str):
                    continue
                uri = _join(base, reference).partition("#")[0]
                if not uri.startswith(_BUILT_IN) and self.target(node, keyword) is None:
                    yield node, reference, uri not in self._resources

    def endless(self) -> Node | None:
        """A subschema that refers back to itself without descending into the value, if any.

        Judging by it would never end: validators overflow the stack.
        """
        # Depth-first search with the usual three states: a node that is met again while it is
        # still open closes a cycle.
        done: set[Place] = set()
        open_: set[Place] = set()

        def visit(node: Node) -> Node | None:
            if node.place in open_:
                return node
            if node.place in done:
                return None
            open_.add(node.place)
            for successor in self._in_place(node):
                if (found := visit(successor)) is not None:
                    return found
            open_.discard(node.place)
            done.add(node.place)
            return None

        for place in self._bases:
            node = self.child(self.root, *place)
            if node is not None and (found := visit(node)) is not None:
                return found
        return None

    def _in_place(self, node: Node) -> Iterator[Node]:
        targets = (self.target(node, keyword) for keyword in REFERENCES)
        yield from (target for target in targets if target is not None)
        if "$ref" in node.schema and not self.siblings:
            return
        for keyword in IN_PLACE:
            if keyword in ("not", "if", "then", "else"):
                single = self.child(node, keyword)
                if single is not None:
                    yield single
            else:
                yield from self.branches(node, keyword)

    def _walk(self, node: Node, base: str) -> Iterator[tuple[Node, str]]:
        """Every subschema with its base URI; also records identifiers and anchors."""
        identifier = node.schema.get("$id")
        if isinstance(identifier, str) and (self.siblings or "$ref" not in node.schema):
            if identifier.startswith("#"):
                self._anchors[base, identifier[1:]] = node
            else:
                base = _join(base, identifier).removesuffix("#")
                self._resources[base] = node
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = node.schema.get(keyword)
            if isinstance(anchor, str):
                self._anchors[base, anchor] = node
        yield node, base
        for keyword in SINGLE:
            single = self.child(node, keyword)
            if single is not None:
                yield from self._walk(single, base)
        for keyword in MANY:
            for branch in self.branches(node, keyword):
                yield from self._walk(branch, base)
