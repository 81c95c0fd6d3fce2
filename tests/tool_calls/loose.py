"""Loose calls: tags left out in a compact layout, calls in a sentence, and mentions of a call."""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import STRING, Case, call, case, xml

NOW: Final = xml("now")
HEAD: Final = "<tool_call>\n<function=write>\n"
END: Final = "</function>\n</tool_call>"


def mention(name: str, value: str) -> Case:
    """A value that mentions the begin of a call, and parameters after it."""
    output = xml("write", content=value, path="p") + "\n" + NOW
    return case(f"mention: {name}", output, call("write", content=value, path="p"), call("now"))


LOOSE: Final[tuple[Case, ...]] = (
    mention("an opener and a function in a line", "use <tool_call><function=x> here"),
    mention("an opener and a function on lines", "<tool_call>\n<function=example>\n..."),
    mention("an opener and a known function", "<tool_call>\n<function=write> writes"),
    mention("a function that is empty", "<tool_call><function=></tool_call>"),
    case(
        "compact: no end of a parameter",
        "<tool_call><function=write><parameter=path>ls<parameter=mode>3</parameter></function>"
        "</tool_call>",
        call("write", path="ls", mode=3),
    ),
    case(
        "compact: no end of a parameter, with a newline",
        f"{HEAD}<parameter=path>ls\n<parameter=mode>3</parameter>\n{END}",
        call("write", path="ls", mode=3),
    ),
    case(
        "compact: after a value of another type",
        f"{HEAD}<parameter=mode>\n3\n<parameter=path>ls</parameter>\n{END}",
        call("write", mode=3, path="ls"),
    ),
    case(
        "no end of a function, and another call",
        f"{HEAD}<parameter=path>\nls\n</parameter>\n{NOW}",
        call("write", path="ls"),
        call("now"),
    ),
    case(
        "no opener, in a sentence",
        "Use <function=now>\n</function> for the time.",
        text="Use <function=now>\n</function> for the time.",
    ),
    case(
        "no opener, in code of a line",
        "Format: `<function=now></function>` is it.",
        text="Format: `<function=now></function>` is it.",
    ),
    case(
        "no opener, in the line of another text",
        "Format: <function=write>\n<parameter=path> then the path.",
        text="Format: <function=write>\n<parameter=path> then the path.",
    ),
    case(
        "additional parameters have a type",
        xml("set", a="5", b="x"),
        call("set", a=5, b="x"),
        tools={"set": {"additionalProperties": {"type": "integer"}, "properties": {"b": STRING}}},
    ),
    case(
        "an object with a line break in a string",
        xml("run", env='{"a": "x\ny"}'),
        call("run", env={"a": "x\ny"}),
    ),
    case("an integer of 999 digits", xml("write", mode="7" * 999), call("write", mode="7" * 999)),
)
