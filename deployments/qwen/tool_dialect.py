"""ToolDialect: reads the tool calls that Qwen3-Coder and Qwen3-2507 write into their answers.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

or, in Hermes' format, `<tool_call>` around a JSON object with name and arguments. Nothing in a
value is escaped, so a tag counts only where the dialect can mean it: a name is one of the request's
tools, a closing tag stands before the next tag of the call, and a whole call inside a value belongs
to the value. All else is text. Answers depend on the text alone, not on how it was cut, and the
cost is linear in its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from qwenfleet.deployments.qwen import json_call
from qwenfleet.deployments.qwen.argument_types import Schema
from qwenfleet.deployments.qwen.arguments import ArgumentWriter
from qwenfleet.deployments.qwen.events import Arguments, CallEnd, CallStart, Event, Text
from qwenfleet.deployments.qwen.json_call import JsonArguments
from qwenfleet.deployments.qwen.lookahead import MOST_BLANKS, Lookahead, NeedsMore

CALL: Final = "<tool_call>"
END_CALL: Final = "</tool_call>"
FUNCTION: Final = "<function="
END_FUNCTION: Final = "</function>"
PARAMETER: Final = "<parameter="
END_PARAMETER: Final = "</parameter>"

MOST_HELD: Final = 16_384
"""Characters that wait for the end of a JSON call in an unusual form."""
_BLANKS: Final = " \t\r\n"


class ToolDialect:
    """One answer of a model, read piece by piece."""

    def __init__(self, tools: Mapping[str, Any], *, is_forced: bool = False) -> None:
        """`tools` maps the names of the request's tools to the JSON schemas of their parameters. In
        an answer that is forced to call one, the begin of a call at the end is not text."""
        self._tools = tools
        self._is_forced = is_forced
        self._schemas: dict[str, Schema] = {}
        """Those of the tools that were called: to make one may take longer than to read a call."""
        self._text = ""
        self._at = 0
        """What comes before it is part of an event."""
        self._scan = 0
        """What comes before it needs no second look."""
        self._no_end_before = 0
        """No END_CALL begins before it."""
        self._is_whole = False
        self._state: Callable[[], bool] = self._read_text
        self._events: list[Event] = []
        self._is_after_call = False
        """Whether whitespace is what separates a call from what follows."""
        self._before = "\n"
        """The last character of the text that is part of an event."""
        self._is_compact = False
        """Whether the value begins on the line of its tag."""
        self._last = "\n"
        """The last character of the value that is part of an event."""
        self._nested = 0
        """Calls inside the value that have not ended."""
        self._openers = 0
        """Openers inside the value that no XML call follows, and no closer yet."""
        self._writer = ArgumentWriter(Schema(None, None))
        self._json = JsonArguments()

    def feed(self, text: str) -> list[Event]:
        """Return what this piece of the answer decides."""
        self._text = self._text[self._at :] + text if self._at < len(self._text) else text
        self._scan = max(self._scan - self._at, 0)
        self._no_end_before = max(self._no_end_before - self._at, 0)
        self._at = 0
        return self._read()

    def finish(self) -> list[Event]:
        """Return what the end of the answer decides. A call that has begun ends incomplete."""
        self._is_whole = True
        events = self._read()
        if self._is_forced:
            events = [event for event in events if not isinstance(event, Text)]
        if self._state != self._read_text:
            events.append(CallEnd(is_complete=False))
        self._text, self._at = "", 0
        return events

    def _read(self) -> list[Event]:
        self._events = []
        try:
            while self._state():
                pass
        except NeedsMore:
            pass
        return self._events

    # States: each returns whether the next one may go on.

    def _read_text(self) -> bool:
        """Tell text up to the next call."""
        mark = self._text.find("<", max(self._at, self._scan))
        if mark < 0:
            self._scan = len(self._text)
            self._tell_text(self._scan)
            return False
        self._tell_text(mark)
        self._scan = mark
        if self._begin_call(mark):
            return True
        self._scan = mark + 1
        return True

    def _begin_call(self, mark: int) -> bool:
        """Go on to the call that begins here, if one does. Raises NeedsMore."""
        ahead = Lookahead(self._text, mark, self._is_whole)
        is_opened = ahead.take(CALL)
        if is_opened:
            ahead.blanks()
            if ahead.take("{"):
                return self._begin_json(ahead)
        elif (self._text[mark - 1] if mark > self._at else self._before) != "\n":
            return False  # a call without its first tag has a line of its own
        name = ahead.name() if ahead.take(FUNCTION) else None
        if name is None or name not in self._tools:
            return False
        ahead.blanks()
        at = ahead.at
        if ahead.take(PARAMETER):
            if ahead.name() is None:
                return False
        elif not ahead.take(END_FUNCTION) and not (is_opened and ahead.take(END_CALL)):
            return False
        self._start(name, at)
        if name not in self._schemas:
            self._schemas[name] = Schema(self._tools[name], self._tools[name])
        self._writer = ArgumentWriter(self._schemas[name])
        self._state = self._read_tag
        return True

    def _begin_json(self, ahead: Lookahead) -> bool:
        at = ahead.at
        name = json_call.streamed_head(ahead, self._tools)
        if name is not None:
            self._start(name, ahead.at)
            self._json = JsonArguments()
            self._state = self._read_json
            return True
        end = self._text.find(END_CALL, max(at, self._no_end_before))
        if end < 0:
            self._no_end_before = max(len(self._text) - len(END_CALL) + 1, 0)
            end = len(self._text)
            if not self._is_whole and end - at <= MOST_HELD:
                raise NeedsMore
        else:
            self._no_end_before = end
        if min(end + len(END_CALL), len(self._text)) - at > MOST_HELD:
            return False
        found = json_call.whole_call(self._text[at - 1 : end], self._tools)
        if found is None:
            return False
        self._start(found[0], min(end + len(END_CALL), len(self._text)))
        self._events += [Arguments(found[1]), CallEnd(is_complete=True)]
        self._end_call()
        return True

    def _read_tag(self) -> bool:
        """Pass the tag that comes next inside a call."""
        ahead = Lookahead(self._text, self._at, self._is_whole)
        ahead.blanks()
        if ahead.take(PARAMETER):
            name = ahead.name()
            if name is None or ahead.is_at_end:
                return False  # the answer ended here
            self._is_compact = not ahead.take("\n")
            self._events += _arguments(self._writer.begin(name))
            self._last, self._nested, self._openers = "\n", 0, 0
            self._at = self._scan = ahead.at
            self._state = self._read_value
            return True
        self._at = ahead.at
        if _is_call(Lookahead(self._text, self._at, self._is_whole)):
            self._scan = self._at  # the call before it was left open
        elif ahead.take(END_FUNCTION) or ahead.take(END_CALL):
            self._at = ahead.at
        else:
            return False  # the answer ended here
        self._events += _arguments(self._writer.end())
        self._events.append(CallEnd(is_complete=True))
        self._state = self._read_end
        return True

    def _read_value(self) -> bool:
        """Tell the value up to the tag that ends it."""
        mark = self._text.find("<", max(self._at, self._scan))
        end = len(self._text) if mark < 0 else mark
        is_line_end = end > self._at and self._text[end - 1] == "\n"
        self._tell_value(end - 1 if is_line_end else end)
        self._scan = end
        if mark < 0:
            return False
        ahead = Lookahead(self._text, mark, self._is_whole)
        at = self._end_of_value(ahead, mark)
        if at is None:
            self._scan = max(self._scan, mark + 1)
            return not ahead.is_cut
        self._events += _arguments(self._writer.end_value())
        self._at = self._scan = at
        self._state = self._read_tag
        return True

    def _end_of_value(self, ahead: Lookahead, mark: int) -> int | None:
        """Return where the call goes on if the tag at `mark` ends the value. Raises NeedsMore."""
        if ahead.take(END_PARAMETER):
            ahead.blanks()
            at = ahead.at
            return at if not self._nested and _is_tag(ahead) else None
        if ahead.take(END_FUNCTION):
            ahead.blanks()
            if ahead.take(END_CALL):
                if not self._nested:
                    return mark
                self._nested -= 1
                self._scan = ahead.at
                return None
            return mark if _is_call(ahead) or ahead.is_cut else None
        if ahead.take(END_CALL):
            if self._openers:
                self._openers -= 1
                return None
            ahead.blanks()
            return mark if not self._nested and (_is_call(ahead) or ahead.is_cut) else None
        if ahead.take(PARAMETER):
            before = self._text[mark - 1] if mark > self._at else self._last
            if self._nested or not (self._is_compact or before == "\n"):
                return None
            name = ahead.name()
            if name is None or not self._writer.expects(name):
                return None
            is_loose = self._is_compact or not self._writer.is_text
            return mark if is_loose or ahead.take("\n") else None
        if _is_call(ahead):
            self._nested += 1
        elif ahead.at > mark:
            self._openers += 1
        return None

    def _read_json(self) -> bool:
        """Tell the arguments of a JSON call."""
        piece, self._at = self._json.feed(self._text, self._at)
        self._events += _arguments(piece)
        if not self._json.is_done:
            return False
        self._events.append(CallEnd(is_complete=self._json.is_valid))
        self._state = self._read_json_end
        return True

    def _read_json_end(self) -> bool:
        """Pass the rest of a JSON call: other members, its bracket and its closing tag."""
        ahead = Lookahead(self._text, self._at, self._is_whole)
        ahead.blanks()
        if ahead.take(","):
            ahead.name("}")
        else:
            ahead.take("}")
        self._at = len(self._text) if ahead.is_cut else ahead.at
        self._state = self._read_end
        return True

    def _read_end(self) -> bool:
        """Pass the closing tags of a call."""
        ahead = Lookahead(self._text, self._at, self._is_whole)
        ahead.blanks()
        if ahead.take(END_CALL):
            self._at = ahead.at
        elif ahead.is_cut:
            self._at = len(self._text)
        self._end_call()
        return True

    # What becomes an event.

    def _tell_text(self, end: int) -> None:
        """Tell text but for the whitespace at its end, which may separate it from a call."""
        start = self._at
        if self._is_after_call:
            while start < end and self._text[start] in _BLANKS:
                start += 1
            self._at = start
            if start == end:
                return
            self._is_after_call = False
        if not self._is_whole or end < len(self._text):
            least = max(start, end - MOST_BLANKS)
            while end > least and self._text[end - 1] in _BLANKS:
                end -= 1
        if end > start:
            self._events.append(Text(self._text[start:end]))
            self._at, self._before = end, self._text[end - 1]

    def _tell_value(self, end: int) -> None:
        if end > self._at:
            self._events += _arguments(self._writer.write(self._text[self._at : end]))
            self._last = self._text[end - 1]
            self._at = end

    def _start(self, name: str, at: int) -> None:
        self._events.append(CallStart(name))
        self._at = self._scan = at

    def _end_call(self) -> None:
        self._is_after_call, self._before = True, "\n"
        self._scan = self._at
        self._state = self._read_text


def _arguments(piece: str) -> list[Event]:
    return [Arguments(piece)] if piece else []


def _is_tag(ahead: Lookahead) -> bool:
    """Whether a tag that can follow a parameter comes next, or the end of the answer."""
    if ahead.take(END_FUNCTION) or ahead.take(END_CALL):
        return True
    if ahead.take(PARAMETER):
        return ahead.name() is not None or ahead.is_cut
    return _is_call(ahead) or ahead.is_cut


def _is_call(ahead: Lookahead) -> bool:
    """Whether the begin of a call of any tool comes next."""
    if not ahead.take(CALL):
        return False
    ahead.blanks()
    if not ahead.take(FUNCTION) or ahead.name() is None:
        return False
    ahead.blanks()
    if ahead.take(PARAMETER):
        return ahead.name() is not None
    return ahead.take(END_FUNCTION) or ahead.take(END_CALL)
