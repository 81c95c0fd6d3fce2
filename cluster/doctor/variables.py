"""Environment variables of Ray, vLLM, Hugging Face and HTTP proxies that change a fleet's behavior.

Values may contain secrets: only those of variables that this module names are ever shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok
from qwenfleet.cluster.vllm_settings.removed import REMOVED_VARIABLES

PREFIXES = ("RAY_", "VLLM_", "HF_", "TRANSFORMERS_")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("127.0.0.1", "localhost")
HARMLESS = frozenset(
    {
        "RAY_USAGE_STATS_ENABLED",
        "VLLM_CONFIGURE_LOGGING",
        "VLLM_DO_NOT_TRACK",
        "VLLM_LOGGING_LEVEL",
        "VLLM_NO_USAGE_STATS",
    }
)
JUDGED_ELSEWHERE = frozenset({"VLLM_PLUGINS"})
_TRUE = ("1", "on", "yes", "true")


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are judged here."""
    proxies = {*PROXIES, "no_proxy"}
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIXES) or name.lower() in proxies
    }


def judge(variables: Mapping[str, str], *, is_node: bool) -> list[Finding]:
    """Findings about variables. Ray's are not judged on a cluster's node, whose Ray is already
    running with them."""
    findings = [*_judge_proxies(variables), *_judge_offline(variables), *_judge_vllm(variables)]
    if not is_node:
        findings += _judge_ray(variables)
    summary = "no variable changes the behavior of `qwenfleet serve`"
    return findings or [ok(Subject.ENVIRONMENT, summary)]


def _judge_ray(variables: Mapping[str, str]) -> list[Finding]:
    findings = []
    if address := variables.get("RAY_ADDRESS"):
        sentence = (
            f"RAY_ADDRESS={address}: Ray's own commands use that cluster, and `qwenfleet serve` "
            "starts its own"
        )
        remedy = "Unset it unless you want to use that cluster."
        findings.append(note(Subject.ENVIRONMENT, sentence, remedy))
    mode = variables.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        sentence = (
            f"RAY_AUTH_MODE={mode}: a Ray cluster that you start yourself does not require a "
            "token; `qwenfleet serve` always sets it to `token`"
        )
        remedy = "Unset it: anyone who can reach such a cluster can run code on its nodes."
        findings.append(note(Subject.ENVIRONMENT, sentence, remedy))
    serve = _names(variables, "RAY_SERVE_")
    if serve:
        sentence = (
            f"Ray Serve will read {', '.join(serve)}, except variables that `qwenfleet serve` sets"
        )
        remedy = "Unset those that you did not intend to set."
        findings.append(note(Subject.ENVIRONMENT, sentence, remedy))
    return findings


def _judge_vllm(variables: Mapping[str, str]) -> list[Finding]:
    findings = []
    space = variables.get("VLLM_CPU_KVCACHE_SPACE")
    if space:
        sentence = f"VLLM_CPU_KVCACHE_SPACE={space} overrides kv_cache_gib of every CPU engine"
        remedy = "Unset it, and set kv_cache_gib in the fleet's configuration instead."
        findings.append(note(Subject.ENVIRONMENT, sentence, remedy))
    unread = [setting for setting in REMOVED_VARIABLES if setting.name in variables]
    for setting in unread:
        sentence = f"vLLM 0.32 does not read {setting.name}"
        findings.append(note(Subject.ENVIRONMENT, sentence, setting.remedy))
    judged = {"VLLM_CPU_KVCACHE_SPACE", *(setting.name for setting in unread)}
    names = [name for name in _names(variables, "VLLM_") if name not in judged]
    if names:
        sentence = f"gateways and engines will inherit {', '.join(names)}"
        remedy = "Unset those that you did not intend to set."
        findings.append(note(Subject.ENVIRONMENT, sentence, remedy))
    return findings


def _judge_offline(variables: Mapping[str, str]) -> list[Finding]:
    names = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if variables.get(name, "").lower() in _TRUE
    ]
    if not names:
        return []
    sentence = (
        f"{' and '.join(names)} set: a model that is not on this machine cannot be downloaded"
    )
    remedy = "Download the model first, use its local directory as the source, or unset the above."
    return [note(Subject.ENVIRONMENT, sentence, remedy)]


def _judge_proxies(variables: Mapping[str, str]) -> list[Finding]:
    proxies = sorted(name for name in variables if name.lower() in PROXIES and variables[name])
    exempt = {
        host.strip().lower()
        for name in variables
        if name.lower() == "no_proxy"
        for host in variables[name].split(",")
    }
    missing = [host for host in LOOPBACK if host not in exempt]
    if not proxies or not missing or "*" in exempt:
        return []
    sentence = (
        f"{', '.join(proxies)} set, but no_proxy lacks {' and '.join(missing)}: clients on this "
        "machine send their requests for the fleet to the proxy"
    )
    remedy = f"Set no_proxy={','.join([*sorted(exempt - {''}), *missing])}."
    return [note(Subject.ENVIRONMENT, sentence, remedy)]


def _names(variables: Mapping[str, str], prefix: str) -> list[str]:
    skipped = HARMLESS | JUDGED_ELSEWHERE
    return sorted(name for name in variables if name.startswith(prefix) and name not in skipped)
