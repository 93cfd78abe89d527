"""Extraction: a text goes in, a JSON record comes out.

Three ways to know what is wanted, from easy to general: the kind of text tells it (as after
fine-tuning), the prompt names the properties, or earlier turns of the conversation show it.
"""

from __future__ import annotations

_CHATTER = """Thank you.|Best regards.|Let me know.|That is all.|See you soon.|Have a nice day.
|I wrote this on the train.|More details later.|Sorry for the short note.|We talked yesterday.
|By the way, the sun is shining.|Please confirm.|I live alone.|My sister told me to write.
|You reach me at extension {10-99}.|I have lived here for {2-40} years.|My bus leaves at {7-19}.
|Call me before {1-11} o'clock.|I am in room {1-400}.|My brother is {20-70}.|I saw it on page {2-99}.
|I have two cats.|It is my first time.|The last visit was in {2001-2024}.|I hope you can help.
|My number is {200-999} {1000-9999}.|I will be away until May.|We are {2-9} at home.|Not urgent.
|I have tried everything.|The neighbours have the same.|My house number is {1-150}.|Sent at night.
|It was {2-30} degrees outside.|I paid {5-90} last time.|So much for now.|I wonder what it is.
|We have never had this before.|I am [happy|tired|busy|curious] today.|No questions.|As agreed.
|I slept [well|badly].|My [wife|husband|boss|friend] said so.|Second try.|Copy to the office.
|I [think|hope|believe] it will [pass|change|help].|The parking lot was full.|{2-9} people waited."""
_CHATTERS = [line.strip() for line in _CHATTER.replace("\n", "").split("|I ")]
_CHATTERS = _CHATTER.replace("\n|", "\x00").split("\x00")


def _chatter_lines() -> list[str]:
    lines: list[str] = []
    depth, line = 0, ""
    for letter in _CHATTER.replace("\n", ""):
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and depth == 0:
            lines.append(line)
            line = ""
        else:
            line += letter
    return [*lines, line]
