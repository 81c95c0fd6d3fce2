import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models import sources


class Hub(BaseHTTPRequestHandler):
    """Answers like the Hub, by the name of the model."""

    ANSWERS: ClassVar[dict[str, tuple[int, dict[str, str]]]] = {
        "present": (200, {"X-Repo-Commit": "c", "ETag": "e"}),
        "gated": (403, {"X-Error-Code": "GatedRepo"}),
        "absent": (404, {"X-Error-Code": "RepoNotFound"}),
        "empty": (404, {"X-Error-Code": "EntryNotFound"}),
        "broken": (500, {}),
    }

    def do_HEAD(self) -> None:
        status, headers = self.ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def point_hub_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT sets when huggingface_hub is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Hub on this machine and an empty local cache."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        point_hub_at(endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield endpoint
        server.shutdown()
        thread.join()


def test_a_model_on_the_hub_is_accepted(hub: str) -> None:
    sources.check_hub("owner/present")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "gated",
            "it is gated, and this user does not have access. "
            "Request access on HUB/owner/gated, then set HF_TOKEN.",
        ),
        (
            "absent",
            "it does not exist on the Hugging Face Hub, or it is private. "
            "Check the spelling, or set HF_TOKEN to a token with read access.",
        ),
        (
            "empty",
            "its repository on the Hugging Face Hub has no config.json. "
            "Name a repository with weights in Hugging Face format.",
        ),
        (
            "broken",
            "the request to HUB failed (HfHubHTTPError). "
            "Check the network, or name a directory that holds the model.",
        ),
    ],
)
def test_a_refusal_by_the_hub_is_reported(hub: str, name: str, problem: str) -> None:
    with pytest.raises(ModelSourceError) as caught:
        sources.check_hub(f"owner/{name}")
    expected = problem.replace("HUB", hub)
    assert str(caught.value) == f"model source 'owner/{name}': {expected}"


def test_an_unreachable_hub_is_reported(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_at("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(ModelSourceError) as caught:
        sources.check_hub("owner/present")
    assert caught.value.problem == "the request to http://127.0.0.1:1 failed (ConnectError)"


def test_a_model_in_the_local_cache_does_not_need_the_hub(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelSourceError) as caught:
        sources.check_hub("owner/cached")
    assert str(caught.value) == (
        "model source 'owner/cached': it is not in the local Hugging Face cache, and "
        "HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE, or download the model first."
    )
    repository = tmp_path / "models--owner--cached"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c")
    (repository / "snapshots" / "c").mkdir(parents=True)
    (repository / "snapshots" / "c" / "config.json").write_text("{}")
    sources.check_hub("owner/cached")
