"""Layout: where calls stand, what stands around them, and which tags a model forgot."""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case, call, case, xml

NOW: Final = xml("now")
HI: Final = xml("write", path="hi")

CALLS: Final[tuple[Case, ...]] = (
    case("one call", HI, call("write", path="hi")),
    case(
        "three parameters",
        xml("write", path="a.py", content="x = 1", mode="420"),
        call("write", path="a.py", content="x = 1", mode=420),
    ),
    case(
        "parameters in another order than declared",
        xml("write", mode="420", path="a.py"),
        call("write", mode=420, path="a.py"),
    ),
    case(
        "every newline of the layout left out",
        "<tool_call><function=write><parameter=path>hi</parameter><parameter=mode>7</parameter>"
        "</function></tool_call>",
        call("write", path="hi", mode=7),
    ),
    case(
        "newlines around the value only",
        "<tool_call><function=write><parameter=path>\nhi\n</parameter></function></tool_call>",
        call("write", path="hi"),
    ),
    case(
        "blank lines between all tags",
        "<tool_call>\n\n<function=write>\n\n<parameter=path>\nhi\n</parameter>\n\n"
        "</function>\n\n</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "indented tags",
        "<tool_call>\n  <function=write>\n    <parameter=path>hi</parameter>\n  </function>\n"
        "</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "tabs between tags",
        "<tool_call>\n\t<function=write>\n\t\t<parameter=path>hi</parameter>\n\t</function>\n"
        "</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "carriage returns between tags",
        "<tool_call>\r\n<function=write>\r\n<parameter=path>hi</parameter>\r\n</function>\r\n"
        "</tool_call>\r\n",
        call("write", path="hi"),
    ),
    case(
        "blanks inside tags",
        "<tool_call>\n<function= write >\n<parameter= path >\nhi\n</parameter>\n</function>\n"
        "</tool_call>",
        call("write", path="hi"),
    ),
    case("no parameters", NOW, call("now")),
    case(
        "no parameters, and a blank line",
        "<tool_call>\n<function=now>\n\n</function>\n</tool_call>",
        call("now"),
    ),
    case(
        "no parameters, and no newline",
        "<tool_call><function=now></function></tool_call>",
        call("now"),
    ),
    case("no parameters of a tool that has some", xml("write"), call("write")),
    case(
        "the same parameter twice",
        xml("write", path="a").replace(
            "</function>", "<parameter=path>\nb\n</parameter>\n</function>"
        ),
        call("write", path="a"),
    ),
    case(
        "the same parameter twice, with another between and one after",
        "<tool_call>\n<function=write>\n<parameter=path>\na\n</parameter>\n"
        "<parameter=mode>\n1\n</parameter>\n<parameter=path>\nb\n</parameter>\n"
        "<parameter=content>\nc\n</parameter>\n</function>\n</tool_call>",
        call("write", path="a", mode=1, content="c"),
    ),
    case(
        "the same typed parameter twice",
        "<tool_call>\n<function=write>\n<parameter=mode>\n1\n</parameter>\n"
        "<parameter=mode>\n2\n</parameter>\n</function>\n</tool_call>",
        call("write", mode=1),
    ),
    case(
        "an undeclared parameter",
        xml("write", path="a", owner="7"),
        call("write", path="a", owner="7"),
    ),
    case("a parameter of a tool without any", xml("now", zone="[1]"), call("now", zone="[1]")),
    case(
        "a tool without a schema",
        xml("free", key="{}"),
        call("free", key="{}"),
        tools={"free": None},
    ),
    case(
        "names with dots, dashes and digits",
        xml("mcp.files-2_read", **{"file-path.0": "a"}),
        call("mcp.files-2_read", **{"file-path.0": "a"}),
        tools={"mcp.files-2_read": {}},
    ),
    case(
        "names that are not ASCII",
        xml("größe", **{"длина": "5"}),
        call("größe", **{"длина": 5}),
        tools={"größe": {"properties": {"длина": {"type": "integer"}}}},
    ),
)

AROUND: Final[tuple[Case, ...]] = (
    case("text before a call", "I will look.\n\n" + NOW, call("now"), text="I will look."),
    case("text right before a call", "Now:" + NOW, call("now"), text="Now:"),
    case("text after a call", NOW + "\nDone.", call("now"), text="Done."),
    case("text right after a call", NOW + "Done.", call("now"), text="Done."),
    case(
        "text before, between and after calls",
        f"One.\n{NOW}\nTwo.\n{HI}\n\nThree.\n",
        call("now"),
        call("write", path="hi"),
        text="One.Two.Three.\n",
    ),
    case("blanks around a call", f" \n\t{NOW} \r\n ", call("now")),
    case("blanks inside the text stay", f"a \n b{NOW}c \n d", call("now"), text="a \n bc \n d"),
    case("much space after a call", NOW + "\n" * 500 + "x", call("now"), text="x"),
    case("two calls", f"{NOW}\n{HI}", call("now"), call("write", path="hi")),
    case("two calls without a newline between", NOW + HI, call("now"), call("write", path="hi")),
    case("two calls with blank lines between", f"{NOW}\n\n\n{NOW}", call("now"), call("now")),
    case("twenty calls", "\n".join([NOW] * 20), *[call("now")] * 20),
    case(
        "two functions in one call",
        "<tool_call>\n<function=now>\n</function>\n<function=write>\n<parameter=path>\nhi\n"
        "</parameter>\n</function>\n</tool_call>",
        call("now"),
        call("write", path="hi"),
    ),
    case("text with a lesser sign", f"if a < b:\n{NOW}", call("now"), text="if a < b:"),
    case("text with HTML", f"<b>Hi</b> <br/>{NOW}", call("now"), text="<b>Hi</b> <br/>"),
    case("a second opener", f"<tool_call>\n{NOW}", call("now"), text="<tool_call>"),
    case(
        "a second closing tag",
        f"{NOW}\n</tool_call>",
        call("now"),
        text="</tool_call>",
    ),
    case("text only", "All is well.\n", text="All is well.\n"),
    case("blanks only", " \n\n ", text=" \n\n "),
    case("emoji around a call", f"👩‍👩‍👧 ok\n{NOW}\n🎉", call("now"), text="👩‍👩‍👧 ok🎉"),
    case("long text", "word < " * 5000 + "end\n" + NOW, call("now"), text="word < " * 5000 + "end"),
)

PATH: Final = "<function=write>\n<parameter=path>\nhi"

FORGOTTEN: Final[tuple[Case, ...]] = (
    case(
        "no opener",
        f"{PATH}\n</parameter>\n</function>\n</tool_call>",
        call("write", path="hi"),
    ),
    case("no opener and no closer", f"{PATH}\n</parameter>\n</function>", call("write", path="hi")),
    case("no opener, no parameters", "<function=now>\n</function>", call("now")),
    case(
        "no opener, after text",
        f"Look:\n{PATH}\n</parameter>\n</function>\n</tool_call>\nDone",
        call("write", path="hi"),
        text="Look:Done",
    ),
    case(
        "two calls without openers",
        f"{PATH}\n</parameter>\n</function>\n{PATH}\n</parameter>\n</function>",
        call("write", path="hi"),
        call("write", path="hi"),
    ),
    case(
        "no end of the last parameter",
        f"<tool_call>\n{PATH}\n</function>\n</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "no end of the last parameter, and no newline",
        "<tool_call><function=write><parameter=path>hi</function></tool_call>",
        call("write", path="hi"),
    ),
    case(
        "no end of the last parameter, which is typed",
        "<tool_call>\n<function=write>\n<parameter=mode>\n7\n</function>\n</tool_call>",
        call("write", mode=7),
    ),
    case(
        "no end of the last parameter, and no closer",
        f"<tool_call>\n{PATH}\n</function>",
        call("write", path="hi"),
    ),
    case(
        "no end of the last parameter, and another call",
        f"<tool_call>\n{PATH}\n</function>\n</tool_call>\n{NOW}",
        call("write", path="hi"),
        call("now"),
    ),
    case(
        "no end of the last parameter, no closer, and another call",
        f"<tool_call>\n{PATH}\n</function>\n{NOW}",
        call("write", path="hi"),
        call("now"),
    ),
    case(
        "no end of the last parameter, and text after the call",
        f"<tool_call>\n{PATH}\n</function>\n</tool_call>\nDone",
        call("write", path="hi"),
        text="Done",
    ),
    case(
        "no end of the first parameter",
        f"<tool_call>\n{PATH}\n<parameter=content>\nx\n</parameter>\n</function>\n</tool_call>",
        call("write", path="hi", content="x"),
    ),
    case(
        "no end of any parameter",
        f"<tool_call>\n{PATH}\n<parameter=content>\nx\n<parameter=mode>\n7\n"
        "</function>\n</tool_call>",
        call("write", path="hi", content="x", mode=7),
    ),
    case(
        "no end of an empty parameter",
        "<tool_call>\n<function=write>\n<parameter=path>\n<parameter=content>\nx\n"
        "</parameter>\n</function>\n</tool_call>",
        call("write", path="", content="x"),
    ),
    case(
        "no end of the function",
        f"<tool_call>\n{PATH}\n</parameter>\n</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "no end of the function, and no parameters",
        "<tool_call>\n<function=now>\n</tool_call>",
        call("now"),
    ),
    case(
        "no end of parameter and function",
        f"<tool_call>\n{PATH}\n</tool_call>",
        call("write", path="hi"),
    ),
    case(
        "no end of parameter and function, and another call",
        f"<tool_call>\n{PATH}\n</tool_call>\n{NOW}",
        call("write", path="hi"),
        call("now"),
    ),
    case("no closer", f"<tool_call>\n{PATH}\n</parameter>\n</function>", call("write", path="hi")),
    case(
        "no closer, and another call",
        f"<tool_call>\n{PATH}\n</parameter>\n</function>\n{NOW}",
        call("write", path="hi"),
        call("now"),
    ),
    case(
        "no closer, and text",
        f"<tool_call>\n{PATH}\n</parameter>\n</function>\nDone",
        call("write", path="hi"),
        text="Done",
    ),
)

LAYOUT: Final = CALLS + AROUND + FORGOTTEN
