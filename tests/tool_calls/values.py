"""Values: text in parameters that looks like tags, JSON or layout, and must come out unchanged."""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case, call, case, hermes, xml


def kept(name: str, value: str) -> Case:
    """A value that stands between two others, none of which may lose a character."""
    output = xml("write", path="before", content=value, mode="7")
    return case(name, output, call("write", path="before", content=value, mode=7))


def last(name: str, value: str) -> Case:
    """A value that stands last in its call, with text after it."""
    output = xml("write", content=value) + "\nDone"
    return case(name, output, call("write", content=value), text="Done")


NESTED: Final = xml("write", path="a\nb", content="</parameter> is a tag")

TAGS: Final[tuple[Case, ...]] = (
    kept("value: the end of a parameter inside a line", "a </parameter> b"),
    kept("value: the end of a parameter on a line of its own", "a\n</parameter>\nb"),
    kept("value: the end of a parameter at its start", "</parameter> b"),
    last("last value: the end of a parameter", "a </parameter> b"),
    last("last value: the end of a parameter, then blank lines", "a</parameter>\n\n\nb"),
    kept("value: the end of a function", "a </function> b"),
    last("last value: the end of a function", "a\n</function>\nb"),
    kept("value: a parameter", "a <parameter=q> b"),
    kept("value: a parameter on a line of its own", "a\n<parameter=q>\nb"),
    kept("value: a parameter that has a value already", "a\n<parameter=path>\nb"),
    kept("value: a declared parameter inside a line", "set <parameter=mode>\nb"),
    kept("value: a declared parameter with more on its line", "a\n<parameter=mode>7"),
    kept("value: a parameter and its end", "a <parameter=q>1</parameter> b"),
    last("last value: a parameter and its end", "a\n<parameter=q>\n1\n</parameter>\nb"),
    kept("value: the end of a parameter with a blank", "a </ parameter> b\n</ parameter>"),
    kept("value: a parameter with blanks", "a\n< parameter = x>\nb"),
    kept("value: an opener", "a <tool_call> b"),
    kept("value: an opener on a line of its own", "a\n<tool_call>\nb"),
    last("last value: an opener at its end", "a\n<tool_call>"),
    kept("value: a closer", "a </tool_call> b"),
    last("last value: a closer on a line of its own", "a\n</tool_call>\nb"),
    last("last value: a closer at its end", "a\n</tool_call>"),
    kept("value: opener and closer", "<tool_call></tool_call>"),
    last("last value: end of function and closer, apart", "a </function> and </tool_call> b"),
    kept("value: a function", "a\n<function=now>\nb"),
    kept("value: a call", NESTED),
    last("last value: a call", NESTED),
    last("last value: a call, and text around", f"Example:\n{NESTED}\nThat is all."),
    last("last value: two calls", f"{NESTED}\n{NESTED}"),
    kept("value: a call without parameters", xml("now")),
    kept("value: a call of an unknown tool", xml("unknown", a="1")),
    kept("value: a call in JSON", hermes("now", "{}")),
    last("last value: a call in JSON", hermes("now", "{}")),
    last("last value: a call in JSON, then one in XML", hermes("now", "{}") + "\n" + xml("now")),
    last("last value: two calls in JSON", hermes("now", "{}") + "\n" + hermes("now", "{}")),
    kept("value: a call on one line", "<tool_call><function=now></function></tool_call>"),
    kept("value: every tag without its bracket", "<tool_call <function=now <parameter=a </param"),
    kept("value: HTML", "<!DOCTYPE html>\n<p class='a'>1 &lt; 2 <br/></p>"),
    kept("value: generics and shifts", "Map<String, List<T>> a = b << 2 <<< c <= d <"),
    kept("value: a line that ends with a lesser sign", "a <\n< b\n<"),
    kept("value: openings of tags", "< </ <t </p <pa </f </tool_cal <parameter <function="),
)

LAYOUT: Final[tuple[Case, ...]] = (
    kept("value: one leading newline", "\na"),
    kept("value: three leading newlines", "\n\n\na"),
    kept("value: one trailing newline", "a\n"),
    kept("value: three trailing newlines", "a\n\n\n"),
    kept("value: newlines only", "\n\n"),
    kept("value: one newline", "\n"),
    kept("value: empty", ""),
    last("last value: empty", ""),
    case(
        "value: empty, with one newline",
        "<tool_call>\n<function=write>\n<parameter=path>\n</parameter>\n</function>\n</tool_call>",
        call("write", path=""),
    ),
    case(
        "value: empty, without a newline",
        "<tool_call>\n<function=write>\n<parameter=path></parameter>\n</function>\n</tool_call>",
        call("write", path=""),
    ),
    kept("value: blanks around", "  a\t "),
    kept("value: blanks only", " \t "),
    kept("value: blank lines with blanks", " \n \n"),
    kept("value: tabs", "\tif a:\n\t\tb\n"),
    kept("value: lines that end with a carriage return", "a\r\nb\r\n"),
    kept("value: carriage returns", "\ra\rb\r"),
    kept("value: more blank lines than a tag may be away", "a" + "\n" * 200),
    case(
        "value: layout that has carriage returns, as the value may",
        "<tool_call>\r\n<function=write>\r\n<parameter=path>\r\na\r\n</parameter>\r\n"
        "</function>\r\n</tool_call>",
        call("write", path="\r\na\r"),
    ),
    case(
        "value: one line, closed on it",
        "<tool_call>\n<function=write>\n<parameter=path>a\n</parameter>\n</function>\n</tool_call>",
        call("write", path="a"),
    ),
)

CHARACTERS: Final[tuple[Case, ...]] = (
    kept("value: quotes", '"a" \'b\' `c` """d"""'),
    kept("value: backslashes", 'C:\\new\\table \\\\ \\n \\" \\u0041 \\'),
    kept("value: a quote at its end", 'say "'),
    kept("value: JSON", '{"a": [1, 2, {"b": null}], "c": "d\\n"}'),
    kept("value: JSON text with quotes in quotes", '"{\\"a\\": \\"b\\"}"'),
    kept("value: a Python dictionary", "{'a': True, 'b': None}"),
    kept("value: true", "true"),
    kept("value: null", "null"),
    kept("value: a number", "007"),
    kept("value: letters of many scripts", "Größe 日本語 עברית हिन्दी"),
    kept("value: emoji", "🎉 👩‍👩‍👧‍👦 🇺🇳 e\u0301"),
    kept("value: line ends of Unicode", "a\u2028b\u2029c\u0085d\x0be\x0cf"),
    kept("value: control characters", "\x00\x01\x1b[31m\x7f"),
    kept("value: replacement and private characters", "\ufffd\ue000\U0010ffff\ufeff"),
    kept("value: template and shell marks", "${a} {{b}} {% c %} $(d) <|im_end|> <think>"),
    kept("value: 40 kB of prose", "All work and no play. " * 1820),
    kept("value: 40 kB of lines with tags", "<p>\n</p>\n</parameter> or <parameter=q>\n" * 1000),
    kept("value: 40 kB on one line", "x" * 40_000),
    last("last value: 40 kB of JSON", '{"key": [1, 2, 3], "<": "\\n"}, ' * 1250),
)

VALUES: Final = TAGS + LAYOUT + CHARACTERS
