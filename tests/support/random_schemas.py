"""Random schemas of every keyword, and values that fit or nearly fit them; fixed by a seed."""

from __future__ import annotations

import random
from typing import Any

DRAFT7 = "http://json-schema.org/draft-07/schema#"
DRAFT2020 = "https://json-schema.org/draft/2020-12/schema"

_NAMES = ("a", "b", "c", "name", "Größe", "x-1")
_TEXTS = ("", "a", "ab", "abc", "aab", "é", "日本", "🎉🎉", "a\nb", "a b", "7", "null", "ÀB")
_NUMBERS = (
    0, 1, 2, 3, -1, 7, 10, 100, -5, 2**53, 2**53 + 1, 2**64, -(2**63), 10**25, 0.0, 0.5, 1.0, 1.5,
    -0.5, 2.0, 3.25, 1e-7, 1e15, 0.1, 0.3, 99.99,
)  # fmt: skip
_STEPS = (1, 2, 3, 5, 10, 0.5, 0.25)
_PATTERNS = ("^a", "b$", "^[ab]+$", "[0-9]", "^.{2}$", "a|é", "^$", "(ab)+", "[0-9]{2}", "^x-")
# Formats that both judges check, each with examples of both kinds.
FORMATS: dict[str, tuple[str, ...]] = {
    "date": ("2026-11-21", "2026-02-30", "2024-02-29", "21.11.2026", "2026-1-2"),
    "email": ("a@b.org", "no address", "a.b@c.de"),
    "ipv4": ("127.0.0.1", "256.0.0.1", "1.2.3", "01.2.3.4", "0.0.0.0"),
    "ipv6": ("::1", "fe80::1", "12345::", "::ffff:1.2.3.4", ":::1", "1:2:3:4:5:6:7:8"),
    "uuid": ("2eb8aa08-aa98-11ea-b4aa-73b441d16380", "2eb8aa08aa9811eab4aa73b441d16380", "z"),
    "regex": ("^a+$", "(", "[a-z", "a{2}"),
}


class Maker:
    """Draws schemas of one draft, and values, from one random generator."""

    def __init__(self, seed: int, draft: str) -> None:
        self._dice = random.Random(seed)
        self._draft7 = draft == DRAFT7
        self._draft = draft

    def document(self) -> dict[str, Any]:
        """A complete schema; some have definitions, which may refer to themselves."""
        dice = self._dice
        names = ["D", "E"] if dice.random() < 0.4 else []
        self._names = [f"#/{self._defs}/{name}" for name in names]
        definitions = {name: self._schema(2, inside=True) for name in names}
        document: dict[str, Any] = {"$schema": self._draft, **self._object_schema(4)}
        if definitions:
            document[self._defs] = definitions
        return document

    @property
    def _defs(self) -> str:
        return "definitions" if self._draft7 else "$defs"

    def _schema(self, depth: int, *, inside: bool = False) -> Any:
        if self._dice.random() < 0.06:
            return self._dice.random() < 0.7
        return self._object_schema(depth, inside=inside)

    def _object_schema(self, depth: int, *, inside: bool = False) -> dict[str, Any]:
        dice = self._dice
        found: dict[str, Any] = {}
        makers = [self._scalar, self._text, self._number]
        if depth > 0:
            makers += [self._array, self._object, self._object, self._composed]
        for make in dice.sample(makers, dice.choice((1, 1, 1, 2))):
            found |= make(depth - 1)
        if self._names and not inside and dice.random() < 0.15:
            found["$ref"] = dice.choice(self._names)
        return found

    def _some(self, **makers: Any) -> dict[str, Any]:
        """One to three of the keywords."""
        chosen = self._dice.sample(list(makers), min(len(makers), self._dice.randint(1, 3)))
        return {
            name.replace("_", "$") if name[0] == "_" else name: makers[name]() for name in chosen
        }

    def _scalar(self, _: int) -> dict[str, Any]:
        dice = self._dice
        types = ["null", "boolean", "integer", "number", "string", "array", "object"]
        return dice.choice((
            lambda: {"type": dice.choice(types)},
            lambda: {"type": dice.sample(types, dice.randint(1, 3))},
            lambda: {"enum": self._unlike([self.value(1) for _ in range(dice.randint(1, 4))])},
            lambda: {"const": self.value(2)},
        ))()  # fmt: skip

    def _text(self, _: int) -> dict[str, Any]:
        dice = self._dice
        found = self._some(
            minLength=lambda: dice.randint(0, 3),
            maxLength=lambda: dice.randint(0, 4),
            pattern=lambda: dice.choice(_PATTERNS),
            format=lambda: dice.choice([*FORMATS, "unheard-of"]),
        )
        return {"type": "string", **found} if dice.random() < 0.5 else found

    def _number(self, _: int) -> dict[str, Any]:
        dice = self._dice
        limit = lambda: dice.choice(_NUMBERS)  # noqa: E731
        found = self._some(
            minimum=limit,
            maximum=limit,
            exclusiveMinimum=limit,
            exclusiveMaximum=limit,
            multipleOf=lambda: dice.choice(_STEPS),
        )
        return (
            {"type": dice.choice(("integer", "number")), **found} if dice.random() < 0.5 else found
        )

    def _array(self, depth: int) -> dict[str, Any]:
        dice = self._dice
        many = lambda: [self._schema(depth) for _ in range(dice.randint(1, 3))]  # noqa: E731
        one = lambda: self._schema(depth)  # noqa: E731
        small = lambda: dice.randint(0, 3)  # noqa: E731
        makers: dict[str, Any] = {
            "minItems": small,
            "maxItems": small,
            "uniqueItems": lambda: True,
            "contains": one,
        }
        if self._draft7:
            makers |= {"items": lambda: many() if dice.random() < 0.4 else one()}
        else:
            makers |= {"items": one, "prefixItems": many, "unevaluatedItems": one}
        found = self._some(**makers)
        if isinstance(found.get("items"), list) and dice.random() < 0.5:
            found["additionalItems"] = one()
        if "contains" in found and not self._draft7:
            found |= {"minContains": small()} if dice.random() < 0.3 else {}
            found |= {"maxContains": small()} if dice.random() < 0.3 else {}
        return {"type": "array", **found} if dice.random() < 0.6 else found

    def _object(self, depth: int) -> dict[str, Any]:
        dice = self._dice
        one = lambda: self._schema(depth)  # noqa: E731
        names = lambda: dice.sample(_NAMES, dice.randint(1, 3))  # noqa: E731
        makers: dict[str, Any] = {
            "properties": lambda: {name: one() for name in names()},
            "required": names,
            "additionalProperties": one,
            "patternProperties": lambda: {dice.choice(("^a", "^[bc]$", "-")): one()},
            "propertyNames": one,
            "minProperties": lambda: dice.randint(0, 2),
            "maxProperties": lambda: dice.randint(0, 3),
        }
        if self._draft7:
            makers["dependencies"] = lambda: {
                name: names() if dice.random() < 0.5 else one() for name in names()
            }
        else:
            makers["dependentRequired"] = lambda: {name: names() for name in names()}
            makers["dependentSchemas"] = lambda: {name: one() for name in names()}
            makers["unevaluatedProperties"] = one
        found = self._some(**makers)
        if dice.random() < 0.7:
            found["properties"] = makers["properties"]()
        return {"type": "object", **found} if dice.random() < 0.6 else found

    def _composed(self, depth: int) -> dict[str, Any]:
        dice = self._dice
        one = lambda: self._schema(depth)  # noqa: E731
        many = lambda: [one() for _ in range(dice.randint(1, 3))]  # noqa: E731
        return dice.choice((
            lambda: {"anyOf": many()},
            lambda: {"oneOf": many()},
            lambda: {"allOf": many()},
            lambda: {"not": one()},
            lambda: {"if": one(), "then": one(), "else": one()},
            lambda: {"if": one(), "then": one()},
        ))()  # fmt: skip

    def _unlike(self, values: list[Any]) -> list[Any]:
        """Enumerations have no duplicates; 1 and 1.0 are equal."""
        found: list[Any] = []
        for value in values:
            if not any(value == other and type(value) is type(other) for other in found):
                found.append(value)
        return found

    # --- values ---

    def value(self, depth: int = 3) -> Any:
        """Any value."""
        dice = self._dice
        kind = dice.randrange(8 if depth > 0 else 5)
        if kind == 0:
            return dice.choice((None, True, False))
        if kind in (1, 2):
            return dice.choice(_NUMBERS)
        if kind in (3, 4):
            return dice.choice((*_TEXTS, *dice.choice(list(FORMATS.values()))))
        if kind == 5:
            items = [self.value(depth - 1) for _ in range(dice.randint(0, 4))]
            return items + items[:1] if dice.random() < 0.2 else items
        names = dice.sample(_NAMES, dice.randint(0, 4))
        return {name: self.value(depth - 1) for name in names}

    def near(self, schema: Any, depth: int = 3) -> Any:
        """A value of the type that a schema requires, which often fits."""
        dice = self._dice
        if not isinstance(schema, dict) or depth < 0 or dice.random() < 0.1:
            return self.value(max(depth, 0))
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return dice.choice(schema["enum"])
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema and dice.random() < 0.7:
                return self.near(dice.choice(schema[keyword]), depth - 1)
        wanted = schema.get("type")
        wanted = dice.choice(wanted) if isinstance(wanted, list) else wanted
        if wanted == "object" or (wanted is None and schema.keys() & {"properties", "required"}):
            return self._near_object(schema, depth)
        if wanted == "array" or (wanted is None and schema.keys() & {"items", "prefixItems"}):
            items = schema.get("prefixItems", schema.get("items", True))
            rest = schema.get("items", True) if "prefixItems" in schema else True
            each = items if isinstance(items, list) else [items] * dice.randint(0, 3)
            more = [rest] * dice.randint(0, 1)
            return [self.near(item, depth - 1) for item in [*each, *more]]
        if wanted in ("integer", "number") or schema.keys() & {"minimum", "multipleOf"}:
            edges = [value for value in schema.values() if type(value) in (int, float)]
            return dice.choice([*edges, *(edge + 1 for edge in edges), *_NUMBERS[:8]])
        if wanted == "string" or schema.keys() & {"format", "pattern", "minLength"}:
            return dice.choice(FORMATS.get(schema.get("format", ""), _TEXTS))
        return {"null": None, "boolean": True}.get(str(wanted), self.value(depth))

    def _near_object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        dice = self._dice
        properties = schema.get("properties", {})
        names = [name for name in properties if dice.random() < 0.8]
        names += [name for name in schema.get("required", []) if dice.random() < 0.9]
        names += dice.sample(_NAMES, dice.choice((0, 0, 0, 1)))
        return {
            name: self.near(properties.get(name, True), depth - 1) for name in dict.fromkeys(names)
        }
