"""Prose: text that quotes tags or nearly is a call, and must stay text."""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case, call, case, hermes, xml


def stays(name: str, output: str) -> Case:
    """An answer that is text, all of it."""
    return case(name, output, text=output)


QUOTES: Final[tuple[Case, ...]] = (
    stays("prose: a function in quotes", "Use `<function=NAME>` then parameters."),
    stays("prose: a known function in quotes", "Use `<function=write>` then parameters."),
    stays("prose: an opener in quotes", "The model should write `<tool_call>` first."),
    stays("prose: an opener at the end", "The first tag is <tool_call>"),
    stays("prose: opener and closer", "between `<tool_call>` and `</tool_call>`, each on its line"),
    stays("prose: closing tags", "Close with </parameter>, </function> and </tool_call>.\n"),
    stays("prose: all tags in a row", "<tool_call> <function=…> <parameter=…> </tool_call>"),
    stays("prose: a parameter", "<parameter=path>\nhi\n</parameter>"),
    stays("prose: a fenced marker", "```xml\n<tool_call>\n```\nThat is the opener."),
    stays("prose: a fenced function", "```\n<function=write>\n```\n"),
    stays("prose: a fenced form", "```\n<tool_call>\n<function=NAME>\n...\n</function>\n```"),
    stays("prose: a known function, then text", "<tool_call>\n<function=write>\nwrites a file"),
    stays("prose: half a marker at the end", "The tag is <tool_"),
    stays("prose: a lesser sign at the end", "a <"),
    stays("prose: an opener, then a brace", "<tool_call>{ is how it begins"),
    stays("prose: an opener, then a brace and its closer", "<tool_call>{name}</tool_call> \n"),
    stays("prose: many openers", "<tool_call>" * 300),
    stays("prose: many openers of JSON", "<tool_call>{" * 300),
    stays("prose: a long name", f"<function={'x' * 2000}>\n</function>"),
    case(
        "prose: an opener in quotes, then a call",
        "First `<tool_call>`, then the rest:\n" + xml("write", path="hi"),
        call("write", path="hi"),
        text="First `<tool_call>`, then the rest:",
    ),
    case(
        "prose: a function in quotes, then a call, then another quote",
        "Use `<function=write>`.\n" + xml("now") + "\nI used `<function=now>`.",
        call("now"),
        text="Use `<function=write>`.I used `<function=now>`.",
    ),
)

NEARLY: Final[tuple[Case, ...]] = (
    stays("nearly: an unknown tool", xml("unknown", path="hi")),
    stays("nearly: an unknown tool without parameters", xml("unknown")),
    stays("nearly: an unknown tool without an opener", "<function=unknown>\n</function>"),
    stays("nearly: another case of letters", xml("Write", path="hi")),
    stays("nearly: the begin of a tool's name", xml("writ", path="hi")),
    stays("nearly: no name", xml("", path="hi")),
    stays("nearly: an unknown tool in JSON", hermes("unknown", '{"a": 1}')),
    stays("nearly: blanks around the mark", "<tool_call>\n<function = now>\n</function>"),
    stays("nearly: a blank before the word", "<tool_call>\n< function=now>\n</function>"),
    stays("nearly: capitals", "<TOOL_CALL>\n<FUNCTION=now>\n</FUNCTION>\n</TOOL_CALL>"),
    stays("nearly: a function's name in quotes", '<tool_call>\n<function="now">\n</function>'),
    stays("nearly: other tags", '<tool_call>\n<invoke name="now">\n</invoke>\n</tool_call>'),
    stays(
        "nearly: a parameter without its bracket",
        "<tool_call>\n<function=write>\n<parameter=s: [1]\n</parameter>\n</function>\n</tool_call>",
    ),
    stays(
        "nearly: a parameter without its bracket, on one line",
        "<tool_call>\n<function=write>\n<parameter=s: [1]</parameter>\n</function>\n</tool_call>",
    ),
    stays(
        "nearly: a parameter without a name",
        "<tool_call>\n<function=write>\n<parameter=>\nhi\n</parameter>\n</function>\n</tool_call>",
    ),
    stays("nearly: a value without its parameter", xml("write").replace("\n</f", "\nhi\n</f")),
    stays("nearly: a tool, where the request has none of it", "<function=now>"),
    case(
        "nearly: an unknown tool, then a known one",
        f"{xml('unknown', a='1')}\n{xml('now')}",
        call("now"),
        text=xml("unknown", a="1"),
    ),
    case(
        "nearly: a known tool between two unknown ones",
        f"{hermes('unknown', '{}')}\n{xml('now')}\n{xml('unknown')}",
        call("now"),
        text=hermes("unknown", "{}") + xml("unknown"),
    ),
)

PROSE: Final = QUOTES + NEARLY
