"""Limits of what may constrain an answer: JSON schemas, tools, expressions, choices, grammars.

`gateway.limits` bounds each of them as a part of the body. These here bound what an engine gets:
one grammar, of all of a request's tools for example. Its size says little about its cost, so a
gateway also compiles each new one in a process that it can end, before an engine gets it.
"""

from pydantic import Field

from qwenfleet.cluster.config.section import Section

LONGEST_COMPILE_S = 20.0
"""An engine gives up a grammar after 30 s (compile_pool.py), so a gateway must refuse it before."""


class GrammarConfig(Section):
    """Limits of the grammars that requests may bring: response formats, strict tools,
    structured outputs."""

    max_bytes: int = Field(
        default=512 * 2**10,
        ge=1,
        description="What constrains an answer, all tools together for example, in bytes; each "
        "schema of it also has `gateway.limits.schema_chars`.",
    )
    max_properties: int = Field(
        default=5000,
        ge=1,
        description="Properties of a JSON schema, or of all schemas of a request's tools, at most.",
    )
    max_choices: int = Field(
        default=5000,
        ge=1,
        description="Choices, enum values and alternatives of a grammar, at most.",
    )
    max_compiled_mib: int = Field(
        default=32, ge=1, description="Memory of a compiled grammar, in MiB."
    )
    compile_s: float = Field(
        default=2.0,
        gt=0,
        le=LONGEST_COMPILE_S,
        description="CPU time that a grammar may take to compile, in seconds.",
    )
    workers: int = Field(
        default=2, ge=1, description="Grammars that a gateway compiles at once, per model."
    )
