"""Cuts: answers that end in the middle, where the model stopped or its tokens were used up.

A call that has begun is reported as incomplete, with its arguments as far as they came. No part of
a tag gets into them. Before its first parameter a call has not begun, and stays text.
"""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case, call, case, cut, xml
from tests.tool_calls.prose import stays

HEAD: Final = "<tool_call>\n<function=write>\n"
PATH: Final = HEAD + "<parameter=path>\n"
MODE: Final = PATH + "a.py\n</parameter>\n<parameter=mode>\n"
CONTENT: Final = MODE + "7\n</parameter>\n<parameter=content>\n"


def after(output: str, arguments: str) -> Case:
    """An answer that ends here, inside a call of `write`."""
    return case(f"cut: {output[-40:]!r}", output, cut("write", arguments))


BEFORE: Final[tuple[Case, ...]] = (
    stays("cut: in the opener", "I will.\n<tool_c"),
    stays("cut: after the opener", "I will.\n<tool_call>\n"),
    stays("cut: in the function", "<tool_call>\n<func"),
    stays("cut: in the name", "<tool_call>\n<function=wri"),
    stays("cut: after the name", "<tool_call>\n<function=write"),
    stays("cut: after the function", HEAD),
    stays("cut: in the first parameter", HEAD + "<parame"),
    stays("cut: in the name of the first parameter", HEAD + "<parameter=pa"),
    stays("cut: before a parameter there were none", "<tool_call>\n<function=now>\n</func"),
)

INSIDE: Final[tuple[Case, ...]] = (
    after(HEAD + "<parameter=path>", ""),
    after(PATH, '{"path": '),
    after(PATH + "a", '{"path": "a'),
    after(PATH + "a.py", '{"path": "a.py'),
    after(PATH + "a.py\n", '{"path": "a.py'),
    after(PATH + "a.py\n\n", '{"path": "a.py\\n'),
    after(PATH + 'say "hi"\n\tand', '{"path": "say \\"hi\\"\\n\\tand'),
    after(PATH + "a <", '{"path": "a '),
    after(PATH + "a < b", '{"path": "a < b'),
    after(PATH + "a.py\n<", '{"path": "a.py'),
    after(PATH + "a.py\n</param", '{"path": "a.py'),
    after(PATH + "a.py\n</parameter>", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n<", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n<parameter", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n<parameter=mo", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n<parameter=mode>", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter>\n</functi", '{"path": "a.py"'),
    after(PATH + "a.py\n</parameter> b", '{"path": "a.py\\n</parameter> b'),
    after(PATH + "a.py\n</funct", '{"path": "a.py'),
    after(PATH + "a.py\n<parameter=mo", '{"path": "a.py'),
    after(PATH + "a.py\n<parameter=mode>", '{"path": "a.py'),
    after(PATH + "a\n<parameter=mode>\n4", '{"path": "a", "mode": '),
    after(MODE, '{"path": "a.py", "mode": '),
    after(MODE + "4", '{"path": "a.py", "mode": '),
    after(MODE + "42\n</parameter>", '{"path": "a.py", "mode": 42'),
    after(CONTENT, '{"path": "a.py", "mode": 7, "content": '),
    after(CONTENT + "x = 1\n\n\ny", '{"path": "a.py", "mode": 7, "content": "x = 1\\n\\n\\ny'),
    after(CONTENT + "é🎉", '{"path": "a.py", "mode": 7, "content": "é🎉'),
    after(PATH + "x" * 40_000, '{"path": "' + "x" * 40_000),
    after(
        PATH + "<tool_call>\n<function=now>\n</function>\n</tool_call>\n",
        '{"path": "<tool_call>\\n<function=now>\\n</function>\\n</tool_call>',
    ),
    case("cut: no opener", "<function=write>\n<parameter=path>\na", cut("write", '{"path": "a')),
    case(
        "cut: a text parameter that may be null",
        "<function=f>\n<parameter=v>\nnul",
        cut("f", '{"v": '),
        tools={"f": {"properties": {"v": {"type": ["string", "null"]}}}},
    ),
    case(
        "cut: a list",
        "<tool_call>\n<function=run>\n<parameter=args>\n[1, 2",
        cut("run", '{"args": '),
    ),
    case(
        "cut: the second call",
        f"Two.\n{xml('now')}\n{PATH}a.p",
        call("now"),
        cut("write", '{"path": "a.p'),
        text="Two.",
    ),
    case(
        "cut: the opener of the second call",
        f"{xml('now')}\n<tool_call>",
        call("now"),
        text="<tool_call>",
    ),
)

CLOSING: Final[tuple[Case, ...]] = (
    case("cut: after the function's end", xml("now")[:-13], call("now")),
    case("cut: in the closer", xml("now")[:-5], call("now")),
    case("cut: in the closer, after a value", xml("write", path="a")[:-5], call("write", path="a")),
    case(
        "cut: in the closer, where the value has no end",
        PATH + "a\n</function>\n</tool_ca",
        call("write", path="a"),
    ),
)

JSON_HEAD: Final = '<tool_call>\n{"name": "write", "arguments": '

JSON: Final[tuple[Case, ...]] = (
    stays("cut json: after the brace", "<tool_call>\n{"),
    stays("cut json: in the key of the name", '<tool_call>\n{"na'),
    stays("cut json: in the name", '<tool_call>\n{"name": "wri'),
    stays("cut json: after the name", '<tool_call>\n{"name": "write", '),
    stays("cut json: before the arguments", JSON_HEAD),
    stays("cut json: arguments first", '<tool_call>\n{"arguments": {"path": "a"}, "na'),
    after(JSON_HEAD + "{", "{"),
    after(JSON_HEAD + '{"pa', '{"pa'),
    after(JSON_HEAD + '{"path": ', '{"path": '),
    after(JSON_HEAD + '{"path": "a', '{"path": "a'),
    after(JSON_HEAD + '{"path": "a\\', '{"path": "a\\'),
    after(JSON_HEAD + '{"path": "a", ', '{"path": "a"'),
    after(JSON_HEAD + '{"path": "a", "mode": 4', '{"path": "a", "mode": 4'),
    after(JSON_HEAD + '{"mode": Tru', '{"mode": '),
    after(JSON_HEAD + '{"args": [1, [2', '{"args": [1, [2'),
    case("cut json: after the arguments", JSON_HEAD + '{"mode": 4}', call("write", mode=4)),
    case("cut json: after the last brace", JSON_HEAD + '{"mode": 4}}\n', call("write", mode=4)),
    case("cut json: in the closer", JSON_HEAD + '{"mode": 4}}\n</tool_c', call("write", mode=4)),
    case("cut json: after a comma", JSON_HEAD + '{"mode": 4}, "i', call("write", mode=4)),
)

CUTS: Final = BEFORE + INSIDE + CLOSING + JSON
