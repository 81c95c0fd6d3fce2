"""Tests which requests a gateway's guard admits, and how it reloads a keys file."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.auth import AuthConfig, hash_of, new_key
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.deployments.ingress.errors import KeyRefused, MissingKey, WrongKey
from qwenfleet.deployments.ingress.keys import KEY_HEADERS, OPEN_ROUTES, Guard

KEY = "qf-mine-0123456789-0123456789-0123456789-01234"
OTHER = "qf-hers-0123456789-0123456789-0123456789-01234"
NEW = "qf-newest-0123456789-0123456789-0123456789-012"
AUTH = AuthConfig(keys=(hash_of(KEY), hash_of(OTHER)))

Headers = Sequence[tuple[bytes, bytes]]


def request(*headers: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers)}


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + key.encode()


def x_api_key(key: str) -> tuple[bytes, bytes]:
    return b"x-api-key", key.encode()


def verdict(guard: Guard, *headers: tuple[bytes, bytes]) -> type[KeyRefused] | None:
    """Return the error's class; None if the request passes."""
    try:
        guard.admit(request(*headers))
    except KeyRefused as refusal:
        return type(refusal)
    return None


RIGHT: dict[str, Headers] = {
    "bearer": [bearer(KEY)],
    "the other key": [bearer(OTHER)],
    "x-api-key": [x_api_key(KEY)],
    "lower-case scheme": [(b"authorization", b"bearer " + KEY.encode())],
    "upper-case scheme": [(b"authorization", b"BEARER " + KEY.encode())],
    "several spaces": [(b"authorization", b"  Bearer    " + KEY.encode() + b" \t")],
    "space around x-api-key": [(b"x-api-key", b" " + KEY.encode() + b"\t")],
    "both headers, one key": [bearer(KEY), x_api_key(KEY)],
    "both headers, two keys": [bearer(KEY), x_api_key(OTHER)],
    "a placeholder with the key": [bearer("none"), x_api_key(KEY)],
    "a placeholder with the bearer": [x_api_key("dummy"), bearer(KEY)],
    "another scheme with the key": [(b"authorization", b"Basic eDp5"), x_api_key(KEY)],
    "other headers around it": [(b"accept", b"*/*"), bearer(KEY), (b"host", b"x")],
}

NONE: dict[str, Headers] = {
    "no header": [],
    "other headers only": [(b"accept", b"*/*"), (b"api-key", KEY.encode())],
    "an empty authorization": [(b"authorization", b"")],
    "a scheme without a key": [(b"authorization", b"Bearer")],
    "a scheme and spaces": [(b"authorization", b"Bearer   ")],
    "an empty x-api-key": [(b"x-api-key", b"  ")],
    "a key without its scheme": [(b"authorization", KEY.encode())],
    "basic": [(b"authorization", b"Basic " + KEY.encode())],
    "a scheme that only begins alike": [(b"authorization", b"Bearers " + KEY.encode())],
    "a key in a cookie": [(b"cookie", b"x-api-key=" + KEY.encode())],
}

WRONG: dict[str, Headers] = {
    "another key": [bearer(NEW)],
    "another x-api-key": [x_api_key(NEW)],
    "both wrong": [bearer(NEW), x_api_key("none")],
    "a key cut short": [bearer(KEY[:-1])],
    "a key with more": [bearer(KEY + "x")],
    "another case": [bearer(KEY.upper())],
    "two keys in one header": [bearer(f"{KEY} {OTHER}")],
    "a list of credentials": [bearer(f"{KEY}, Bearer {OTHER}")],
    "the hash of a key": [bearer(hash_of(KEY))],
    "the digits of the hash": [x_api_key(hash_of(KEY).removeprefix("sha256:"))],
    "no utf-8": [(b"authorization", b"Bearer \xff\xfe\x80")],
    "a zero byte": [(b"x-api-key", KEY.encode() + b"\0")],
    "a quoted key": [(b"x-api-key", b'"' + KEY.encode() + b'"')],
    "a huge header": [(b"x-api-key", KEY.encode() * 100_000)],
    "a second header of the same name": [bearer(NEW), bearer(KEY)],
}


@pytest.mark.parametrize("headers", RIGHT.values(), ids=RIGHT.keys())
def test_key_passes_in_either_header(headers: Headers) -> None:
    assert verdict(Guard(AUTH), *headers) is None


@pytest.mark.parametrize("headers", NONE.values(), ids=NONE.keys())
def test_request_without_a_key_is_refused(headers: Headers) -> None:
    assert verdict(Guard(AUTH), *headers) is MissingKey


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_wrong_key_does_not_pass(headers: Headers) -> None:
    assert verdict(Guard(AUTH), *headers) is WrongKey


@given(st.binary(max_size=100), st.sampled_from(sorted(KEY_HEADERS)))
def test_no_other_bytes_pass_as_a_key(value: bytes, name: bytes) -> None:
    assert verdict(Guard(AUTH), (name, value)) in {MissingKey, WrongKey}


@given(st.lists(st.tuples(st.sampled_from([*KEY_HEADERS, b"accept"]), st.binary(max_size=60))))
def test_key_in_x_api_key_passes_with_any_other_header(headers: Headers) -> None:
    assert verdict(Guard(AUTH), x_api_key(KEY), *headers) is None


@pytest.mark.parametrize("auth", [AUTH, "none", None])
def test_admitted_request_loses_only_its_key(auth: Any) -> None:
    kept = [(b"host", b"x"), (b"x-request-timeout-s", b"5"), (b"accept", b"*/*")]
    scope = request(kept[0], bearer(KEY), kept[1], x_api_key(OTHER), x_api_key(NEW), kept[2])
    before = dict(scope, headers=list(scope["headers"]))
    passed = Guard(auth).admit(scope)
    assert passed == {**scope, "headers": kept}
    assert scope == before, "a scope belongs to the server"


@pytest.mark.parametrize("auth", [None, "none"])
def test_fleet_without_keys_admits_everyone(auth: Any) -> None:
    guard = Guard(auth)
    for headers in (*RIGHT.values(), *NONE.values(), *WRONG.values()):
        assert verdict(guard, *headers) is None


@pytest.mark.parametrize("path", sorted(OPEN_ROUTES))
def test_health_needs_no_key(path: str) -> None:
    Guard(AUTH).admit(request(path=path))
    Guard(AUTH).admit(request(bearer(NEW), path=path))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/", "/health", "/health/live/", "/health/live/../../v1/models", "/x"]
)
def test_every_other_route_needs_a_key(path: str) -> None:
    with pytest.raises(MissingKey):
        Guard(AUTH).admit(request(path=path))


# A keys file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    write(path, KEY)
    return path


def write(path: Path, *keys: str) -> None:
    """Write the keys as editors and kubectl do: a new file replaces the old one."""
    new_file = path.with_suffix(".new")
    new_file.write_text("".join(f"{hash_of(key)}\n" for key in keys), encoding="ascii")
    new_file.replace(path)


def guard_of(path: Path, *keys: str) -> Guard:
    return Guard(AuthConfig(keys=tuple(map(hash_of, keys)), keys_file=str(path)))


def passes(guard: Guard, key: str) -> bool:
    return verdict(guard, bearer(key)) is None


def test_keys_of_the_file_and_the_configuration_are_both_valid(file: Path) -> None:
    guard = guard_of(file, OTHER)
    assert guard.has_file
    assert passes(guard, KEY)
    assert passes(guard, OTHER)
    assert not passes(guard, NEW)
    assert not Guard(AUTH).has_file


def test_unusable_keys_file_stops_the_start(file: Path) -> None:
    file.write_text("qf-a-key-in-place-of-its-hash\n")
    with pytest.raises(ConfigError, match=r"keys line 1: not a key hash"):
        guard_of(file)
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        guard_of(file, OTHER)


def replaced(path: Path) -> None:
    write(path, NEW)


def written_in_place(path: Path) -> None:
    path.write_text(hash_of(NEW))


def written_in_place_within_the_same_clock_tick(path: Path) -> None:
    seen = path.stat()
    path.write_text(f"{hash_of(NEW)}\n\n")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [replaced, written_in_place, written_in_place_within_the_same_clock_tick]
)
def test_changed_keys_file_is_reloaded(file: Path, change: Callable[[Path], None]) -> None:
    guard = guard_of(file, OTHER)
    change(file)
    guard.reload()
    assert passes(guard, NEW)
    assert not passes(guard, KEY), "a key that is taken out is refused"
    assert passes(guard, OTHER)


def test_mounted_secret_is_reloaded_when_its_link_is_swapped(tmp_path: Path) -> None:
    """Kubelet's atomic writer links keys -> ..data/keys, and ..data -> the newest directory."""
    for name, key in (("..1", KEY), ("..2", NEW)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "keys", key)
        os.utime(tmp_path / name / "keys", ns=(10**18, 10**18))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    guard = guard_of(tmp_path / "keys")
    assert passes(guard, KEY)
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    guard.reload()
    assert passes(guard, NEW)
    assert not passes(guard, KEY)


def made_wrong(path: Path) -> None:
    path.write_text(f"{hash_of(NEW)}\n{NEW}\n")


def removed(path: Path) -> None:
    path.unlink()


def made_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("break_it", [made_wrong, removed, made_a_directory])
def test_broken_keys_file_keeps_the_last_good_keys_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture, break_it: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.INFO)
    guard = guard_of(file)
    caplog.clear()
    break_it(file)
    for _ in range(3):
        guard.reload()
    assert passes(guard, KEY)
    assert not passes(guard, NEW)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(file) in record.__dict__["problem"]
    if file.is_dir():
        file.rmdir()
    write(file, NEW)
    guard.reload()
    assert passes(guard, NEW)
    assert not passes(guard, KEY)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]


def test_keys_file_unreadable_for_a_moment_is_read_later(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_of(file)
    write(file, NEW)

    def stale(_: str) -> tuple[str, ...]:
        raise ConfigError("stale file handle", "Wait.")

    with monkeypatch.context() as patch:
        patch.setattr("qwenfleet.deployments.ingress.keys.read_named_keys", stale)
        guard.reload()
    assert passes(guard, KEY)
    guard.reload()
    assert passes(guard, NEW)


def test_empty_keys_file_refuses_every_request_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guard = guard_of(file)
    caplog.clear()
    write(file)
    for _ in range(3):
        guard.reload()
    assert not passes(guard, KEY)
    assert verdict(guard) is MissingKey
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "every request is refused" in caplog.text


def test_unchanged_keys_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guard_of(file)
    monkeypatch.setattr("qwenfleet.deployments.ingress.keys.read_named_keys", pytest.fail)
    guard.reload()
    assert passes(guard, KEY)


def test_no_key_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guard = guard_of(file)
    for key in (KEY, NEW):
        verdict(guard, bearer(key), x_api_key(key))
    made_wrong(file)
    guard.reload()
    reported = " ".join(str(record.__dict__) for record in caplog.records)
    assert reported
    assert NEW not in reported
    assert KEY not in reported


async def test_gateway_detects_a_change_without_a_blocking_call(
    file: Path, eventually: Any
) -> None:
    """A fixture of this folder fails code that blocks the loop."""
    guard = await asyncio.to_thread(guard_of, file)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0.005)

    task = asyncio.create_task(guard.watch(sleep))
    try:
        await asyncio.to_thread(write, file, NEW)
        await eventually(lambda: passes(guard, NEW))
        assert not passes(guard, KEY)
        await asyncio.to_thread(file.unlink)
        count = len(slept)
        await eventually(lambda: len(slept) > count + 3)
        assert not task.done(), "a removed file does not end the watch"
        assert passes(guard, NEW)
        assert set(slept) == {1.0}
    finally:
        task.cancel()


def test_many_keys_are_checked() -> None:
    keys = [new_key() for _ in range(1000)]
    guard = Guard(AuthConfig(keys=tuple(map(hash_of, keys))))
    assert all(passes(guard, key) for key in keys)
    assert not any(passes(guard, new_key()) for _ in range(100))
