"""Keys and paths through HAProxy: what holds in the gateway's app must hold for the whole fleet."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests import key_forms, path_tricks
from tests.hostile.senders import raw
from tests.key_forms import KEY_FORMS
from tests.path_tricks import METHODS, NOT_SERVED, TRICKS

pytestmark = pytest.mark.integration

BODY = json.dumps({"model": "quiet", "prompt": "x", "max_tokens": 1}).encode()
WAIT_S = 10.0


@pytest.mark.parametrize("form", KEY_FORMS, ids=lambda form: form.name)
def test_only_a_whole_key_in_its_header_opens_the_fleet(site, form):
    answer = asyncio.run(raw(site, key_forms.request(form, BODY), WAIT_S))
    assert answer.status in form.statuses, answer.head
    assert key_forms.KEY.encode() not in answer.head


@pytest.mark.parametrize("target", TRICKS)
def test_no_trick_with_a_path_avoids_the_key_or_reaches_another_route(site, target):
    for method in METHODS:
        keyless = asyncio.run(raw(site, path_tricks.request(method, target), WAIT_S))
        # HAProxy itself answers `*`, which is a path of no gateway.
        refused = {404} if target == "*" else {400, 401}
        assert keyless.status in refused, (method, keyless.head)
        assert b"quiet" not in keyless.head
        field = f"X-Api-Key: {site.key}"
        answer = asyncio.run(raw(site, path_tricks.request(method, target, field), WAIT_S))
        assert answer.status in NOT_SERVED, (method, answer.head)
