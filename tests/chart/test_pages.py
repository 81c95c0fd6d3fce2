"""The values in the documentation render with a real helm."""

from __future__ import annotations

import pytest
import yaml

from qwenfleet.cluster.config.fleet import FleetConfig
from tests.pages import blocks, read

pytestmark = pytest.mark.chart

VALUES = [
    block
    for block in blocks("yaml")
    if block.file_name.endswith("-values.yaml")
    or not set(FleetConfig.model_fields).issuperset(yaml.safe_load(block.text))
]


@pytest.mark.parametrize("block", VALUES, ids=lambda block: block.name)
def test_the_values_of_a_page_render(render, block):
    assert render(yaml.safe_load(block.text))


def test_the_values_to_install_use_the_image_that_the_page_builds(render, groups, serve_config):
    (block,) = (block for block in VALUES if block.file_name == "my-values.yaml")
    documents = render(yaml.safe_load(block.text))

    assert groups(documents)["engine-0"]["replicas"] == 2
    image = groups(documents)["engine-0"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example.com/qwenfleet:0.1.0-cuda"
    assert f"{image.rpartition('/')[2]} " in read("docs/kubernetes.md")  # built by its commands
    assert serve_config(documents)
