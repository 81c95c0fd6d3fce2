"""What README shows is what the code does: its configuration loads, its names exist."""

import re
from pathlib import Path

from qwenfleet.cli import __main__ as cli
from qwenfleet.cli.__main__ import _parser
from qwenfleet.cluster.config.load import load
from qwenfleet.cluster.labels import Outcome
from qwenfleet.cluster.metrics import METRICS
from qwenfleet.deployments.ingress.http_app import MODEL_ROUTES, OWN_ROUTES, TIMEOUT_HEADER
from qwenfleet.deployments.ingress.keys import OPEN_ROUTES

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_configurations_load(tmp_path):
    blocks = re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", README, re.DOTALL)
    fleets = {}
    for name, block in blocks:
        (tmp_path / name).write_text(block, encoding="utf-8")
        fleets[name] = load(tmp_path / name)

    assert fleets.keys() == {"fleet.yaml", "guarded.yaml", "mixed.yaml", "slo.yaml"}
    assert [model.id for model in fleets["fleet.yaml"].models] == ["coder", "small"]
    assert fleets["fleet.yaml"].models[0].num_gpus == 2
    assert fleets["guarded.yaml"].has_keys
    assert fleets["slo.yaml"].objectives["smollm2-135m-instruct"].ttft_s == 2
    assert [pool.num_gpus for pool in fleets["mixed.yaml"].engine_pools] == [8, 8]


def test_every_metric_is_explained_and_none_is_invented():
    assert set(re.findall(r"\bqwenfleet_[a-z_]+", README)) == set(METRICS)


def test_every_outcome_is_named():
    for outcome in Outcome:
        assert outcome.value in README


def test_the_routes_are_those_that_are_reachable():
    (passage,) = re.findall(r"^Routes: (.*?)Nothing else", README, re.DOTALL | re.MULTILINE)

    assert set(re.findall(r"`(/[a-z0-9_/]+)`", passage)) == MODEL_ROUTES | OWN_ROUTES
    assert TIMEOUT_HEADER.decode() in README


def test_the_commands_take_the_options_shown():
    for command, options in re.findall(r"\| `qwenfleet (\w+) \[(.*?)`", README):
        shown = set(re.findall(r"--[a-z]+", options))
        assert callable(_parser().parse_args([command]).command)
        for option in shown:
            value = [] if option in {"--json", "--verbose", "--timings", "--once"} else ["1"]
            _parser().parse_args([command, option, *value])


def test_the_keys_commands_and_open_routes_are_those_there_are():
    for words in (["keys", "new", "--name", "NAME"], ["keys", "hash"]):
        assert f"`qwenfleet {words[0]} {words[1]}" in README
        _parser().parse_args(words)
    (passage,) = re.findall(r"Without a key nothing answers but (.*?):", README, re.DOTALL)
    assert set(re.findall(r"`(/[a-z0-9_/]+)`", passage)) == OPEN_ROUTES


def test_what_it_is_takes_20_words():
    line = README.split("\n\n")[1]

    assert 5 < len(line.split()) <= 20


def test_what_plan_is_shown_to_print_is_what_it_prints(capsys):
    """But for where lines are cut, which `…` tells, and folded."""
    shown = re.findall(r"^```\n(\$ qwenfleet plan .*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(shown) == 2
    for passage in "\n".join(shown).split("$ qwenfleet ")[1:]:
        command, _, printed = passage.partition("\n")
        cli.main(command.split())
        answer = capsys.readouterr()
        said = " ".join((answer.out + answer.err).split())
        for piece in printed.split("…"):
            assert " ".join(piece.split()) in said
