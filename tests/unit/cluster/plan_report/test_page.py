import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.hardware.accelerators import H100, H200, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.catalog import CATALOG, KnownModel, find_model
from qwenfleet.cluster.plan_report import page as page_module
from qwenfleet.cluster.plan_report.page import Grid, data, page
from qwenfleet.cluster.planner import speed
from qwenfleet.cluster.planner.request import FleetLoad, PlanRequest
from qwenfleet.cluster.planner.search import plan

CODER = find_model("qwen3-coder-480b-fp8")
SMALL = Grid(models=(CODER,), accelerators=(H100, H200), nodes=(1,), contexts=(131_072,))


def embedded(text):
    (found,) = re.findall(r'id="plans">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_every_combination_on_the_page_has_a_plan():
    tree = data(Grid(models=CATALOG[:2]))
    for model in tree["models"]:
        for accelerator in tree["accelerators"]:
            for nodes in tree["nodes"]:
                for context in tree["contexts"]:
                    found = tree["plans"][f"{model}|{accelerator}|{nodes}|{context}"]
                    assert found["reason"]
    assert len(tree["plans"]) == 2 * 7 * 2 * 3


def test_rows_are_the_planners():
    request = PlanRequest(model=CODER, machines=Machines(H200), context_tokens=131_072)
    found = plan(request, speed.speed_of)
    tree = data(SMALL)["plans"][f"{CODER.name}|H200|1|131072"]
    assert tree["reason"] == found.reason
    names = [one.layout.name for one in found.candidates]
    assert [row["layout"] for row in tree["rows"]] == names[:8]
    assert tree["rows"][0]["cells"][1] == f"{found.choice.kv_tokens:,}"


def test_memory_adds_up_to_one_gpu():
    for found in data(SMALL)["plans"].values():
        for row in found["rows"]:
            assert sum(share for _, _, share in row["memory"]) == pytest.approx(100, abs=0.05)


def test_the_page_says_why_nothing_fits():
    tree = data(replace(SMALL, models=(find_model("qwen3-coder-480b"),), accelerators=(H100,)))
    (found,) = tree["plans"].values()
    assert found["rows"] == []
    assert "GiB" in found["reason"]


def test_a_context_beyond_the_model_is_reported_not_shortened():
    (found,) = data(replace(SMALL, accelerators=(H200,), contexts=(300_000,)))["plans"].values()
    assert found["rows"] == []
    assert "300,000" in found["reason"]


def test_the_commands_belong_to_their_row(capsys, monkeypatch, tmp_path):
    row = data(SMALL)["plans"][f"{CODER.name}|H200|1|131072"]["rows"][1]
    assert f"--layout {row['layout']}" in row["plan"]
    words = row["plan"].removesuffix(" > fleet.yaml").split()
    assert cli.main(words[1:]) == 0
    assert "tensor_parallel_size" in capsys.readouterr().out
    assert row["vllm"].startswith("VLLM_USE_DEEP_GEMM=1 vllm serve Qwen/")


def test_the_command_includes_the_load_of_its_row(capsys):
    heavy = replace(SMALL, accelerators=(H200,), load=FleetLoad(400, 1000, 100))
    (found,) = data(heavy)["plans"].values()
    row = found["rows"][0]
    assert cli.main(row["plan"].removesuffix(" > fleet.yaml").split()[1:]) == 0
    (sequences,) = re.findall(r"--max-num-seqs (\d+)", row["vllm"])
    assert f"max_num_seqs: {sequences}\n" in capsys.readouterr().out
    assert int(sequences) > 400


def test_the_page_loads_nothing():
    text = page(SMALL)
    assert not re.findall(r"""(?:src|href)\s*=(?!"data:,)|url\(|@import""", text)
    assert "default-src 'none'" in text
    assert "innerHTML" not in text
    assert page_module.MARK not in text


def test_a_name_cannot_end_the_script():
    evil = KnownModel("</script><b>x", CODER.geometry, "test")
    text = page(replace(SMALL, models=(evil,)))
    assert "</script><b>" not in text
    assert embedded(text)["models"] == ["</script><b>x"]


def test_given_choices_come_first():
    grid = Grid().with_first(CODER, find_accelerator("MI300X"), 4, 65_536)
    assert grid.models[0] is CODER
    assert len(grid.models) == len(CATALOG)
    assert grid.accelerators[0].name == "MI300X"
    assert grid.nodes == (4, 1, 2)
    assert grid.contexts[0] == 65_536
    assert Grid().with_first(None, None, None, None) == Grid()


def test_the_template_is_in_the_same_folder():
    template = Path(page_module.__file__).with_name(page_module.TEMPLATE)
    assert template.read_text().count(page_module.MARK) == 1


def test_the_command_writes_the_page(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "page", lambda grid: f"{grid.accelerators[0].name} first")
    file = tmp_path / "plan.html"
    assert cli.main(["plan", "--html", str(file), "--accelerator", "mi355x"]) == 0
    assert file.read_text() == "MI355X first"
    assert str(file) in capsys.readouterr().out
