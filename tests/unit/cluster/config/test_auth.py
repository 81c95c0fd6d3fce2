"""Keys and their hashes in a configuration and a keys file; errors never show a key."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwenfleet.cluster.config import auth
from qwenfleet.cluster.config.auth import AuthConfig, Keyring, hash_of, new_key, read_keys
from qwenfleet.cluster.config.fleet import FleetConfig, GatewayConfig, dump
from qwenfleet.cluster.config.load import load
from qwenfleet.cluster.errors import ConfigError

SECRET = "qf-a-key-that-nobody-may-see-in-a-message"
HASH = hash_of(SECRET)


def test_a_key_is_a_prefix_and_256_random_bits() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        assert re.fullmatch(r"qf-[A-Za-z0-9_-]{43}", key)
        assert len(base64.urlsafe_b64decode(key.removeprefix("qf-") + "=")) == 32


def test_a_hash_is_the_sha256_of_the_whole_key() -> None:
    assert f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}" == HASH


@given(st.text(max_size=600), st.text(max_size=600))
def test_a_keyring_holds_a_key_and_no_other(key: str, other: str) -> None:
    ring = Keyring([hash_of(key)])
    assert ring.holds(key.encode()) is (len(key.encode()) <= auth.MAX_KEY_BYTES)
    assert ring.holds(other.encode()) is (other == key and len(key.encode()) <= auth.MAX_KEY_BYTES)


def test_every_key_of_a_ring_counts_once_however_its_hash_is_written() -> None:
    keys = [new_key() for _ in range(5)]
    hashes = [hash_of(key) for key in keys]
    ring = Keyring([*hashes, hashes[0].replace(hashes[0][7:], hashes[0][7:].upper())])
    assert len(ring) == 5
    assert all(ring.holds(key.encode()) for key in keys)
    assert not ring.holds(HASH.encode())


def test_an_empty_ring_holds_nothing() -> None:
    assert not Keyring([]).holds(b"")
    assert not Keyring([]).holds(SECRET.encode())


def config_of(tmp_path: Path, text: str) -> FleetConfig:
    file = tmp_path / "fleet.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auth: none", "none"),
        ("auth:", None),
        (f"auth: {{keys: ['{HASH}']}}", AuthConfig(keys=(HASH,))),
        (f"auth:\n  keys:\n  - {HASH}  # ann\n", AuthConfig(keys=(HASH,))),
        ("auth: {keys_file: /etc/keys}", AuthConfig(keys_file="/etc/keys")),
    ],
)
def test_auth_is_none_or_keys_or_left_out(
    tmp_path: Path, text: str, expected: AuthConfig | str | None
) -> None:
    config = config_of(tmp_path, text)
    assert config.auth == expected
    assert config.has_keys is isinstance(expected, AuthConfig)
    assert FleetConfig.model_validate(json.loads(json.dumps(dump(config)))) == config


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("auth: {}", "line 1: auth has neither keys nor keys_file. Add a hash"),
        ("auth: None", "line 1: auth is neither a mapping nor the word none. Write `auth: none`"),
        ("auth: no", "line 1: auth is neither a mapping nor the word none."),
        (f"auth: {SECRET}", "line 1: auth is neither a mapping nor the word none."),
        (f"auth: [{HASH}]", "line 1: auth is neither a mapping nor the word none."),
        (f"auth:\n  keys: {SECRET}", "line 2: auth.keys is wrong; its value is hidden"),
        (f"auth:\n  keys:\n  - {HASH}\n  - {SECRET}", "line 4: not a key hash"),
        ("auth:\n  keys: ['sha256:12']", "line 2: not a key hash"),
        (
            f"auth:\n  keys: ['{HASH}0']",
            "64 hexadecimal digits, as printed by `qwenfleet keys hash`",
        ),
        ("auth: {keys: [7]}", "not a key hash"),
        (f"auth: {{keys_file: {SECRET}}}", "auth.keys_file is wrong; its value is hidden"),
        (f"auth: {{keyz: [{SECRET}]}}", "unknown key 'keyz' in auth. Did you mean 'keys'?"),
    ],
)
def test_a_wrong_auth_is_reported_with_its_line_and_without_its_value(
    tmp_path: Path, text: str, reported: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, text)
    assert reported in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("tree", [{"keys": [SECRET]}, {"keys_file": SECRET}, SECRET, {SECRET: 1}])
def test_pydantics_own_message_hides_the_value(tree: object) -> None:
    with pytest.raises(ValidationError) as caught:
        FleetConfig.model_validate({"auth": tree})
    assert "auth" in str(caught.value)
    assert tree == {SECRET: 1} or SECRET not in str(caught.value)


def test_the_json_schema_has_the_pattern_of_a_hash() -> None:
    items = FleetConfig.model_json_schema()["$defs"]["AuthConfig"]["properties"]["keys"]["items"]
    assert re.fullmatch(items["pattern"], HASH)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "coder.example", "128.0.0.1"])
def test_beyond_loopback_a_fleet_needs_keys_or_the_word_none(host: str) -> None:
    gateway = GatewayConfig(host=host)
    with pytest.raises(ValidationError, match="the fleet requires no API key"):
        FleetConfig(gateway=gateway)
    assert FleetConfig(gateway=gateway, auth="none").has_keys is False
    assert FleetConfig(gateway=gateway, auth=AuthConfig(keys=(HASH,))).has_keys


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_on_loopback_auth_may_be_left_out(host: str) -> None:
    assert not FleetConfig(gateway=GatewayConfig(host=host)).has_keys


def test_a_serve_that_listens_on_another_host_than_the_file_is_judged_by_its_own() -> None:
    with pytest.raises(ConfigError, match=r"reach 0\.0\.0\.0, and the fleet requires no API key"):
        FleetConfig().check_guarded("0.0.0.0")
    FleetConfig().check_guarded("127.0.0.1")
    FleetConfig(auth="none").check_guarded("0.0.0.0")
    FleetConfig(auth=AuthConfig(keys=(HASH,))).check_guarded("0.0.0.0")


def test_the_message_contains_lines_that_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, "name: x\ngateway:\n  host: 0.0.0.0\n")
    assert "fleet.yaml line 3: other machines can reach 0.0.0.0" in str(caught.value)
    lines = re.findall(r"`(auth: .*?)`", str(caught.value))
    assert len(lines) == 2
    for line in lines:
        text = "gateway: {host: 0.0.0.0}\n" + line.replace("HASH", HASH)
        assert config_of(tmp_path, text).auth is not None


OTHER = hash_of("qf-another-key-of-this-fleet")


@pytest.mark.parametrize(
    "data",
    [
        f"{HASH}\n{OTHER}\n",
        f"{HASH}\n{OTHER}",
        f"# ours\r\n\r\n  {HASH}  # ann, since May\r\n{OTHER}# bob\r\n",
        f"\ufeff{HASH}\n# ünïcode\n\t{OTHER} # Jürgen\n",
    ],
)
def test_a_keys_file_has_a_hash_on_each_line(tmp_path: Path, data: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(data.encode())
    assert read_keys(str(file)) == (HASH, OTHER)


@pytest.mark.parametrize("data", [b"", b"\n", b"# nobody yet\n", b"\xef\xbb\xbf"])
def test_a_keys_file_may_be_empty(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(data)
    assert read_keys(str(file)) == ()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (SECRET.encode(), 1),
        (f"{HASH}\n\n{SECRET}\n".encode(), 3),
        (f"{HASH}\n{HASH[:-1]}\n".encode(), 2),
        (f"{HASH} {OTHER}\n".encode(), 1),
        (f"{HASH},\n".encode(), 1),
        (HASH.replace("sha256", "sha512").encode(), 1),
        (b"sha256:" + b"\xff" * 64, 1),
        (HASH.encode("utf-16"), 1),
        (b"\0" * 100, 1),
    ],
)
def test_a_bad_line_is_reported_with_file_and_number_and_is_hidden(
    tmp_path: Path, data: bytes, line: int
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_keys(str(file))
    assert str(caught.value).startswith(f"{file} line {line}: not a key hash")
    assert SECRET not in str(caught.value)
    assert HASH[7:-1] not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_keys_file_gives_hashes_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-keys"
    file.write_bytes(data)
    refusal: ConfigError | None = None
    found: tuple[str, ...] = ()
    try:
        found = read_keys(str(file))
    except ConfigError as error:
        refusal = error
    assert refusal is None or (refusal.line is not None and str(file) in str(refusal))
    assert AuthConfig(keys=found, keys_file="/k").keys == found


def test_a_keys_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: the keys file cannot be read: No such file"):
        read_keys(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="not a regular file"):
        read_keys(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_keys(str(tmp_path / "pipe"))


def test_a_keys_file_has_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_FILE_BYTES", 100)
    file = tmp_path / "keys"
    file.write_text(f"{HASH}\n".ljust(100))
    assert read_keys(str(file)) == (HASH,)
    file.write_text(f"{HASH}\n".ljust(101))
    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        read_keys(str(file))


def test_both_fields_count_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OTHER)
    assert auth.known_hashes(AuthConfig(keys=(HASH,), keys_file=str(file))) == (HASH, OTHER)
    assert auth.known_hashes(AuthConfig(keys=(HASH,))) == (HASH,)
