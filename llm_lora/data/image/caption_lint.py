"""Caption checks: length, variety, and keywords in front."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_lora import files
from llm_lora.data.finding import Finding
from llm_lora.data.image import captions
from llm_lora.errors import UserError
from llm_lora.schema import quote

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LIMIT = 77
"""Token limit of Stable Diffusion's text encoders, including the start and end tokens."""

_ENDLESS = 512
_COMMON = 0.8
_FEW = 5
_NEARLY = 0.85
"""Similarity (difflib's ratio) from which words count as a misspelt trigger: one wrong letter in
seven, or two swapped letters in fourteen."""
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
_SYNTAX = re.compile(
    r"<(?:lora|lyco|hypernet):[^>]*>|\([^()]*:(?:[0-2]|[0-2]?\.\d+)\)", re.IGNORECASE
)
_BLANK = re.compile(r"\[[^\[\]]+\]|\{[^{}]+\}")


@dataclass(frozen=True)
class Ruler:
    """Measures captions: `count` returns the tokens of a text; the base reads `limit` of them.

    `exact` is false if there is no tokenizer, and counts are lower bounds.
    """

    count: Callable[[str], int]
    limit: int = LIMIT
    exact: bool = True


def least_tokens(text: str) -> int:
    """Lower bound of a caption's tokens: CLIP splits it into these pieces before tokenizing."""
    return len(_PIECE.findall(text)) + 2


def ruler(folder: Path | None) -> Ruler:
    """A ruler for the tokenizer folder of a base, or without one for lower bounds.

    Reads tokenizer.json or, if missing, vocab.json and merges.txt like CLIP's tokenizer.

    Raises:
        UserError: the files are damaged.
    """
    names = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
    whole, vocabulary, merges, config = ((folder or Path()) / name for name in names)
    if folder is None or not (whole.is_file() or (vocabulary.is_file() and merges.is_file())):
        return Ruler(least_tokens, exact=False)
    limit = LIMIT
    try:
        if config.is_file():
            limit = min(
                int(json.loads(files.read_text(config)).get("model_max_length", LIMIT)), 512
            )
        tokenizer = _whole(whole) if whole.is_file() else _clip(vocabulary, merges)
    except UserError:
        raise
    except Exception as error:  # The tokenizers library raises nothing more specific.
        raise UserError(
            f"the tokenizer is damaged: {error}", where=str(folder), fix="restore the base"
        ) from None
    framed = len(tokenizer.encode("").ids)
    return Ruler(lambda text: len(tokenizer.encode(text).ids) + (0 if framed else 2), limit)


def _whole(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(files.read_text(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _clip(vocabulary: Path, merges: Path) -> Tokenizer:
    """CLIP's tokenizer without the start and end tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pairs = [line.split(" ") for line in files.read_text(merges).split("\n")]
    model = models.BPE(
        vocab=json.loads(files.read_text(vocabulary)),
        merges=[(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and pair[0] != "#version:"],
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(model)
    # As transformers' CLIPTokenizer builds it.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def lint(
    texts: Mapping[str, str],
    *,
    trigger: str | None = None,
    ruler: Ruler | None = None,
) -> Iterator[Finding]:
    """Findings on captions; none of them prevents training.

    Args:
        texts: captions by where they were read from, before a trigger is prepended.
        trigger: words that invoke what is learned; prepended to captions that lack them.
        ruler: of the base; without one, lengths are lower bounds.
    """
    yield from _long(texts, trigger, ruler or Ruler(least_tokens, exact=False))
    yield from _equal(texts)
    yield from _place(texts, trigger)
    written = [where for where, text in texts.items() if _SYNTAX.search(text)]
    if written:
        message = (
            "captions contain prompt syntax such as <lora:name:1> or (word:1.2), which is plain "
            "text in training"
        )
        yield Finding("prompt_syntax", message, len(written), written[0])
    blank = {where: found[0] for where, text in texts.items() if (found := _BLANK.search(text))}
    if blank:
        where, first = next(iter(blank.items()))
        message = f"captions contain a template placeholder, such as {first}; describe the picture"
        yield Finding("blanks", message, len(blank), where)
    bare = [where for where, text in texts.items() if len(text.split()) == 1]
    if bare and len(texts) >= _FEW:
        message = "captions are a single word; describe the subject, pose, colours, light"
        yield Finding("bare_captions", message, len(bare), bare[0])


def _long(texts: Mapping[str, str], trigger: str | None, ruler: Ruler) -> Iterator[Finding]:
    whole = {where: captions.with_trigger(text, trigger) for where, text in texts.items()}
    lengths = {where: ruler.count(text) for where, text in whole.items()}
    over = [where for where, length in lengths.items() if length > ruler.limit]
    if over:
        longest = max(over, key=lambda where: lengths[where])
        least = "" if ruler.exact else "at least "
        message = (
            f"captions are longer than the {ruler.limit} tokens that the base reads (the longest "
            f"has {least}{lengths[longest]}); the rest is ignored"
        )
        yield Finding("long_captions", message, len(over), longest)


def _equal(texts: Mapping[str, str]) -> Iterator[Finding]:
    """Equal captions, which teach that their pictures show the same."""
    times = Counter(text.lower() for text in texts.values())
    equal = [where for where, text in texts.items() if times[text.lower()] > 1]
    if not equal:
        return
    (common, most), *_ = times.most_common(1)
    shown = f"the most common {most} times: {quote(common)}"
    if len(texts) >= _FEW and len(times) <= len(texts) / 2:
        message = (
            f"low variety: {len(times)} different captions for {len(texts)} pictures ({shown})"
        )
        yield Finding("low_variety_captions", message, len(equal), equal[0])
    else:
        message = f"captions are identical to that of another picture ({shown}); say what differs"
        yield Finding("equal_captions", message, len(equal), equal[0])


def _place(texts: Mapping[str, str], trigger: str | None) -> Iterator[Finding]:
    """Keywords not in front: first words count most, so trigger and shared tags belong there."""
    if trigger is not None:
        words = captions.one_line(trigger).lower()
        late = [
            where
            for where, text in texts.items()
            if captions.has_trigger(text, trigger) and not text.lower().startswith(words)
        ]
        if late:
            message = f"captions contain the trigger {quote(trigger)}, but not in front"
            yield Finding("trigger_not_first", message, len(late), late[0])
        yield from _misspelt(texts, trigger)
        return
    if len(texts) < _FEW:
        return
    tagged = {where: [tag.lower() for tag in captions.tags(text)] for where, text in texts.items()}
    # Of several tags that all captions share, the foremost one is reported.
    holders = Counter(tag for parts in tagged.values() for tag in dict.fromkeys(parts))
    for tag, count in holders.most_common(1):
        late = [where for where, parts in tagged.items() if tag in parts[1:]]
        if count >= _COMMON * len(texts) and len(late) > count / 2:
            message = f"{quote(tag)} is in {count} of {len(texts)} captions, but not in front: "
            message += "make it data.trigger, or put it first"
            yield Finding("keyword_not_first", message, len(late), late[0])


def _misspelt(texts: Mapping[str, str], trigger: str) -> Iterator[Finding]:
    """Misspelt triggers, which would get the trigger prepended as well."""
    words = captions.one_line(trigger)
    matcher = difflib.SequenceMatcher(b=words.lower(), autojunk=False)
    places: dict[str, list[str]] = {}
    for where, text in texts.items():
        for tag in {captions.one_line(tag) for tag in captions.tags(text)}:
            places.setdefault(tag, []).append(where)
    for tag, holders in places.items():
        if captions.has_trigger(tag, trigger):
            continue
        matcher.set_seq1(tag.lower())
        if matcher.real_quick_ratio() >= _NEARLY <= matcher.ratio():
            message = (
                f"captions contain {quote(tag)}, which is nearly the trigger {quote(words)}: use "
                "one spelling"
            )
            yield Finding("trigger_misspelt", message, len(holders), holders[0])
