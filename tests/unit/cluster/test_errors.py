import pickle
from collections.abc import Iterator

import pytest

from qwenfleet.cluster.errors import (
    REASON_CHARS,
    BenchmarkError,
    ConfigError,
    DeployFailed,
    DrainRefused,
    EngineStartError,
    FleetError,
    FleetLost,
    FleetNotFound,
    GatewayStartError,
    KubernetesError,
    MachineError,
    MetricsError,
    ModelSourceError,
    ProtocolError,
    StartTimeout,
    one_line,
)
from qwenfleet.cluster.plan_errors import (
    Alternative,
    ContextTooLong,
    NoLayoutFits,
    NoSuchMachines,
    PlanError,
    Quantity,
    RequestTooLong,
    WrongQuantity,
)
from qwenfleet.deployments.ingress.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EngineRefused,
    GatewayDraining,
    GatewayFailed,
    LongerThanContext,
    MalformedBody,
    MissingKey,
    ModelBroken,
    ModelLoading,
    ModelRequired,
    NoEngine,
    RequestError,
    RequestKillsEngines,
    RequestTooLarge,
    TooManyRequests,
    UnknownModel,
    UnknownRoute,
    WrongKey,
)
from qwenfleet.deployments.ingress.field_errors import (
    BeyondContext,
    FieldError,
    NotTaken,
    OutOfBounds,
    WrongValue,
)
from qwenfleet.deployments.ingress.grammar_errors import (
    GrammarChecksBusy,
    GrammarInvalid,
    GrammarRefused,
    GrammarTooCostly,
)

EXAMPLES: list[tuple[FleetError, str]] = [
    (
        ConfigError(
            "unknown key 'repliccas' in models[0]", "Did you mean 'replicas'?", "fleet.yaml", 7
        ),
        "fleet.yaml line 7: unknown key 'repliccas' in models[0]. Did you mean 'replicas'?",
    ),
    (
        ModelSourceError("acme/m", "the directory does not exist", "Check the path."),
        "model source 'acme/m': the directory does not exist. Check the path.",
    ),
    (FleetLost("Ray's GCS died", "Start again."), "Ray's GCS died. Start again."),
    (StartTimeout("'a' is not ready after 9 s", "Wait."), "'a' is not ready after 9 s. Wait."),
    (
        KubernetesError("the API answered 403", "Ask for list on nodes.", 403),
        "the API answered 403. Ask for list on nodes.",
    ),
    (MachineError("port 80 is in use", "Use --port."), "port 80 is in use. Use --port."),
    (
        BenchmarkError("vllm ended with status 1", "See vllm.log."),
        "vllm ended with status 1. See vllm.log.",
    ),
    (DeployFailed("Ray is away", "Run it again."), "Ray is away. Run it again."),
    (
        DrainRefused("no engine is called 'e9'", "There are: e1."),
        "no engine is called 'e9'. There are: e1.",
    ),
    (
        NoLayoutFits(
            "no layout fits 8 x H100", "memory", (Alternative(Quantity.NODES, 2, "TP8", "2"),)
        ),
        "no layout fits 8 x H100. What works: TP8 on 2.",
    ),
    (
        WrongQuantity(Quantity.MEMORY_SHARE, 1.5, "a number up to 1"),
        "the share of GPU memory for vLLM is 1.5. Give a number up to 1.",
    ),
    (
        ContextTooLong("coder", 500_000, 262_144),
        "a context of 500,000 tokens exceeds the 262,144 of coder, and no long-context method is "
        "set. Lower the context to 262,144 or less, or choose YaRN, which slightly degrades short "
        "prompts.",
    ),
    (
        RequestTooLong(8192, 512, 8192),
        "a request of 8,192 + 512 tokens is longer than the context of 8,192. Raise the context, "
        "or lower the prompt length.",
    ),
    (
        NoSuchMachines("8 x H100", "H200", ("b (T4)",)),
        "the cluster has 8 x H100, and no H200. Set the accelerator, the number of nodes and the "
        "number of GPUs per node instead. Skipped: b (T4).",
    ),
    (KubernetesError("pods are refused", "Ask.", 403), "pods are refused. Ask."),
    (MetricsError("http://m", "is away", "Wait."), "http://m is away. Wait."),
    (FleetNotFound("no fleet runs here", "Start one."), "no fleet runs here. Start one."),
    (
        EngineStartError("coder", "out of memory", "/tmp/e.log"),
        "an engine for model 'coder' did not start: out of memory. See /tmp/e.log.",
    ),
    (
        GatewayStartError("engine e1 cannot be reached", "Check the network."),
        "a gateway did not start: engine e1 cannot be reached. Check the network.",
    ),
    (
        ProtocolError("frame of 9 bytes"),
        "protocol violated: frame of 9 bytes. Run the same qwenfleet version on every node.",
    ),
    (
        MalformedBody("no JSON"),
        "the request body cannot be read: no JSON. Send one JSON object.",
    ),
    (ModelRequired(("a", "b")), "the request names no model. Set 'model' to 'a' or 'b'."),
    (
        MissingKey(),
        "the request has no API key. Send the header 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'.",
    ),
    (WrongKey(), "the API key is not valid for this fleet. Check it, or ask the operator for one."),
    (UnknownModel("x", ("a",)), "model 'x' is not served here. Set 'model' to 'a'."),
    (UnknownRoute("GET", "/x"), "route GET /x does not exist. Try POST /v1/chat/completions."),
    (
        BodyTooLarge(10, 12),
        "the request body is 12 bytes, above the limit of 10 bytes. "
        "Send less, or ask the operator to raise gateway.max_body_bytes.",
    ),
    (
        OutOfBounds("n", 10_000, 32, "n"),
        "'n' is 10000, above the limit of 32. Send at most 32, or ask the operator to change "
        "gateway.limits.n.",
    ),
    (
        BeyondContext("prompt", 300, "token ids", 256),
        "'prompt' has 300 token ids, and the model's maximum context length is 256 tokens. Send "
        "less.",
    ),
    (
        WrongValue("structured_outputs", "a list of 2", "an object"),
        "'structured_outputs' is a list of 2. Send an object.",
    ),
    (
        NotTaken("prompt_embeds", "the models take text"),
        "'prompt_embeds' is not taken here: the models take text. Leave it out.",
    ),
    (
        RequestTooLarge(20_000_000, 16_777_216),
        "the request takes 20000000 bytes on its way to an engine, above the limit of 16777216 "
        "bytes. Send a shorter prompt, or less in its parameters.",
    ),
    (
        TooManyRequests("1024 requests", 5),
        "this gateway has 1024 requests, its limit. Try again in 5 s.",
    ),
    (ModelLoading("coder", 5), "model 'coder' is still loading. Try again in 5 s."),
    (
        ModelBroken("coder", 5),
        "model 'coder' cannot be served, because its front end failed to start. Tell the operator,"
        " whose gateway log has the reason.",
    ),
    (GatewayDraining(5), "this gateway is stopping. Send the request again in 5 s."),
    (NoEngine("coder", 7), "no engine of model 'coder' is running. Try again in 7 s."),
    (
        EngineRefused("coder", "coder-1", "its parameters are of another vLLM"),
        "engine 'coder-1' of model 'coder' rejected this request: its parameters are of another"
        " vLLM. Tell the operator: the engine's log has more.",
    ),
    (
        LongerThanContext("coder", 300, 256),
        "the request has 300 tokens so far, and the engines of model 'coder' take at most 256 of "
        "prompt and output. Send less.",
    ),
    (
        GrammarInvalid("regular expression", "no token can follow"),
        "the request's regular expression cannot be used: no token can follow. Correct it.",
    ),
    (
        GrammarTooCostly("JSON schema", "has 9 properties", "8", "gateway.grammar.max_properties"),
        "the request's JSON schema has 9 properties, above the limit of 8 "
        "(gateway.grammar.max_properties). Make it simpler.",
    ),
    (
        GrammarChecksBusy(64, 5),
        "64 new grammars wait to be checked at this gateway. Try again in 5 s.",
    ),
    (
        RequestKillsEngines("coder"),
        "engines of model 'coder' crashed while running this request, so it is not tried again. "
        "Change it before you send it again, and tell the operator.",
    ),
    (
        BodyTimeout(2.5),
        "the request body was not complete within 2.5 s. Send less, or check the network.",
    ),
    (
        DeadlineExceeded(2.5),
        "the request did not finish within 2.5 s. "
        "Ask for fewer tokens, or try again when the fleet is less busy.",
    ),
    (
        GatewayFailed(),
        "the gateway failed to process this request. Send it again, or ask the operator to check "
        "the gateway log.",
    ),
]


# Others subclass one for what they raise themselves: Ray, and the wire.
MODULES = {
    kind.__module__ for kind in (FleetError, PlanError, RequestError, FieldError, GrammarRefused)
}


def leaves(error: type[FleetError]) -> Iterator[type[FleetError]]:
    subclasses = [one for one in error.__subclasses__() if one.__module__ in MODULES]
    if not subclasses:
        yield error
    for subclass in subclasses:
        yield from leaves(subclass)


def test_every_error_of_the_tree_has_an_example() -> None:
    assert {type(error) for error, _ in EXAMPLES} == set(leaves(FleetError))


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_message_has_the_problem_the_values_and_the_remedy(
    error: FleetError, sentence: str
) -> None:
    assert str(error) == sentence


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda e: type(e).__name__)
def test_an_error_survives_pickle_with_its_fields(error: FleetError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_each_request_error_has_its_status_kind_and_code() -> None:
    answers = {
        type(error): (error.status, error.kind, error.code)
        for error, _ in EXAMPLES
        if isinstance(error, RequestError)
    }
    assert answers == {
        MalformedBody: (400, "invalid_request_error", "malformed_body"),
        ModelRequired: (400, "invalid_request_error", "model_required"),
        LongerThanContext: (400, "invalid_request_error", "context_length_exceeded"),
        GrammarInvalid: (400, "invalid_request_error", "invalid_grammar"),
        GrammarTooCostly: (400, "invalid_request_error", "grammar_too_costly"),
        GrammarChecksBusy: (429, "rate_limit_error", "grammar_checks_busy"),
        MissingKey: (401, "invalid_request_error", "invalid_api_key"),
        WrongKey: (401, "invalid_request_error", "invalid_api_key"),
        UnknownModel: (404, "not_found_error", "model_not_found"),
        UnknownRoute: (404, "not_found_error", "route_not_found"),
        BodyTooLarge: (413, "invalid_request_error", "body_too_large"),
        OutOfBounds: (400, "invalid_request_error", "out_of_bounds"),
        BeyondContext: (400, "invalid_request_error", "context_length_exceeded"),
        WrongValue: (400, "invalid_request_error", "invalid_field"),
        NotTaken: (400, "invalid_request_error", "field_not_taken"),
        RequestTooLarge: (413, "invalid_request_error", "request_too_large"),
        TooManyRequests: (429, "rate_limit_error", "too_many_requests"),
        ModelLoading: (503, "service_unavailable", "model_loading"),
        ModelBroken: (503, "service_unavailable", "model_broken"),
        NoEngine: (503, "service_unavailable", "no_engine"),
        GatewayDraining: (503, "service_unavailable", "gateway_draining"),
        EngineRefused: (500, "server_error", "engine_refused"),
        RequestKillsEngines: (422, "invalid_request_error", "request_kills_engines"),
        BodyTimeout: (408, "timeout", "timeout"),
        DeadlineExceeded: (504, "timeout", "timeout"),
        GatewayFailed: (500, "server_error", "internal_error"),
    }


def test_retry_after_is_set_only_for_what_passes_or_another_gateway_can_answer() -> None:
    waits = {type(error): error.retry_after_s for error, _ in EXAMPLES if error.retry_after_s}
    assert waits == {
        TooManyRequests: 5,
        ModelLoading: 5,
        ModelBroken: 5,
        NoEngine: 7,
        GatewayDraining: 5,
        GrammarChecksBusy: 5,
    }


def test_the_size_of_a_whole_body_is_a_413_and_names_its_unit() -> None:
    error = OutOfBounds("body", 300_000, 200_000, "body_values", "values")
    assert (error.status, error.param) == (413, "body")
    assert "'body' has 300000 values, above the limit of 200000." in str(error)


def test_a_value_below_its_bound_is_reported_as_such() -> None:
    error = OutOfBounds("priority", -5, 0, "lowest_priority")
    assert "is -5, below the limit of 0. Send at least 0" in str(error)


def test_an_error_repeats_64_characters_of_what_a_client_sent() -> None:
    long = "x" * 1_000_000
    for error in (
        UnknownModel(long, ("a",)),
        UnknownRoute(long, long),
        WrongValue("n", long, "a whole number"),
        OutOfBounds("n", 10**1000, 32, "n"),
    ):
        assert len(str(error)) < 250
    assert "a?b" in str(UnknownModel("a\nb", ("a",)))


def test_the_message_for_a_body_of_unknown_size_has_only_the_limit() -> None:
    assert "is larger than the limit of 10 bytes" in str(BodyTooLarge(10, None))


def test_without_a_log_file_the_message_refers_to_the_engines_log() -> None:
    assert str(EngineStartError("a", "b")).endswith("See the engine's log.")


def test_unknown_model_reports_a_fleet_that_serves_nothing() -> None:
    assert "it serves none now" in str(UnknownModel("x", ()))


def test_a_config_error_without_a_line_names_the_file_alone() -> None:
    assert str(ConfigError("p", "R.", "fleet.yaml")) == "fleet.yaml: p. R."


def test_further_config_errors_follow_one_per_line() -> None:
    others = (ConfigError("q", "S.", "f", 2), ConfigError("r", "T."))
    error = ConfigError("p", "R.", "f", 1, "name", others)
    assert str(error) == "f line 1: p. R.\nf line 2: q. S.\nr. T."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_another_programs_message_becomes_part_of_a_sentence() -> None:
    error = ValueError("  no room\n\tfor\x20 10 GiB.  \n")
    assert one_line(error) == "no room for 10 GiB"
    assert one_line("a" * 999) == "a" * REASON_CHARS
    assert one_line("no room. Trace", 8) == "no room"
