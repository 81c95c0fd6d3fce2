"""A proof fits one secret, one session, one pair of nonces and one side."""

from __future__ import annotations

import itertools

from qwenfleet.deployments.wire.secret import engine_proof, gateway_proof, is_equal, nonce

HERE, THERE = b"h" * 32, b"t" * 32


def test_every_part_of_a_proof_counts() -> None:
    proofs = [
        gateway_proof("secret", "gw-a", HERE, THERE),
        engine_proof("secret", "gw-a", HERE, THERE),
        gateway_proof("secret2", "gw-a", HERE, THERE),
        gateway_proof("secret", "gw-b", HERE, THERE),
        gateway_proof("secret", "gw-a", THERE, HERE),
        gateway_proof("secret", "gw-a", HERE, HERE),
        gateway_proof("", "gw-a", HERE, THERE),
        gateway_proof("sécret", "gw-a", HERE, THERE),
    ]
    assert not any(is_equal(one, other) for one, other in itertools.combinations(proofs, 2))
    assert is_equal(proofs[0], gateway_proof("secret", "gw-a", HERE, THERE))


def test_proofs_of_any_length_are_compared() -> None:
    assert not is_equal(b"", gateway_proof("secret", "gw-a", HERE, THERE))


def test_nonces_differ() -> None:
    assert len({nonce() for _ in range(100)}) == 100
    assert len(nonce()) == 32
