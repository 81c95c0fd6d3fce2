"""Blame for a crash: the request that was alone in the core, and almost never another."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenfleet.deployments.dispatch.suspicion import (
    CLEAN_TOKENS,
    MAX_CORE_DEATHS,
    MAX_LOSSES,
    MAX_UNPROVEN,
    Suspicion,
    Verdict,
)

FREE, TRIAL, CONVICTED = Verdict


@pytest.fixture
def suspicion() -> Suspicion:
    return Suspicion()


def test_every_request_of_a_dead_core_is_tried(suspicion: Suspicion) -> None:
    assert suspicion.crashed(is_core_death=True) is TRIAL
    assert suspicion.is_suspect


def test_the_one_on_trial_when_the_next_core_dies_is_convicted(suspicion: Suspicion) -> None:
    suspicion.crashed(is_core_death=True)
    suspicion.is_on_trial = True
    assert suspicion.crashed(is_core_death=True) is CONVICTED


def test_a_suspect_that_waited_for_its_trial_is_still_tried(suspicion: Suspicion) -> None:
    for _ in range(100):
        assert suspicion.crashed(is_core_death=True) is TRIAL
    assert suspicion.core_deaths == 1  # the other cores never ran it


def test_a_token_clears_a_suspect(suspicion: Suspicion) -> None:
    suspicion.crashed(is_core_death=True)
    suspicion.is_on_trial = True
    suspicion.cleared()
    assert not suspicion.is_suspect
    assert not suspicion.is_on_trial
    assert suspicion.crashed(is_core_death=False) is FREE


def test_a_vanished_host_is_not_blamed_on_a_prompt_at_first(suspicion: Suspicion) -> None:
    assert suspicion.crashed(is_core_death=False) is FREE
    assert not suspicion.is_suspect
    assert suspicion.crashed(is_core_death=False) is TRIAL


def test_hosts_that_vanish_between_tokens_never_count_against_a_request(
    suspicion: Suspicion,
) -> None:
    for _ in range(100):
        assert suspicion.crashed(is_core_death=False) is FREE
        suspicion.cleared()


def test_a_third_silent_crash_without_a_token_convicts(suspicion: Suspicion) -> None:
    assert MAX_UNPROVEN == 3
    assert suspicion.crashed(is_core_death=False) is FREE
    assert suspicion.crashed(is_core_death=False) is TRIAL
    suspicion.is_on_trial = True
    assert suspicion.crashed(is_core_death=False) is CONVICTED


def test_a_fifth_loss_in_a_row_convicts_even_one_that_was_never_on_trial(
    suspicion: Suspicion,
) -> None:
    """A request that cuts the link, before the host can announce its trial."""
    assert MAX_LOSSES == 5
    verdicts = [suspicion.crashed(is_core_death=False) for _ in range(5)]
    assert verdicts == [FREE, TRIAL, TRIAL, TRIAL, CONVICTED]


def test_dead_cores_that_never_had_a_suspect_do_not_count_among_its_losses(
    suspicion: Suspicion,
) -> None:
    for is_core_death in (False, False, True, True, True, True, True):
        assert suspicion.crashed(is_core_death=is_core_death) is not CONVICTED
    assert suspicion.unproven == 2


def test_a_request_that_kills_after_its_first_token_runs_out_of_trials(
    suspicion: Suspicion,
) -> None:
    assert MAX_CORE_DEATHS == 4
    for _ in range(MAX_CORE_DEATHS - 1):
        assert suspicion.crashed(is_core_death=True) is TRIAL
        suspicion.is_on_trial = True
        suspicion.cleared()
    assert suspicion.crashed(is_core_death=True) is CONVICTED


@given(st.lists(st.booleans(), max_size=40))
def test_an_innocent_that_makes_tokens_between_crashes_is_convicted_by_the_fourth_core_at_most(
    crashes: list[bool],
) -> None:
    suspicion = Suspicion()
    for count, is_core_death in enumerate(crashes):
        deaths = sum(crashes[: count + 1])
        verdict = suspicion.crashed(is_core_death=is_core_death)
        assert (verdict is CONVICTED) == (deaths >= MAX_CORE_DEATHS)
        if verdict is CONVICTED:
            return
        suspicion.is_on_trial = verdict is TRIAL  # alone with the core, until its token
        suspicion.cleared()


@dataclass
class Passenger:
    is_poison: bool
    suspicion: Suspicion = field(default_factory=Suspicion)
    is_convicted: bool = False


def ride_until_cleared(
    aboard: list[Passenger], rng: random.Random, *, tells: bool
) -> tuple[int, list[Passenger]]:
    """One crash and all trials after it: the cores that died, and the requests that were freed."""
    deaths = 0
    waiting = list(aboard)
    while True:
        deaths += 1
        survivors: list[Passenger] = []
        for passenger in waiting:
            verdict = passenger.suspicion.crashed(is_core_death=tells)
            passenger.is_convicted = verdict is CONVICTED
            if verdict is not CONVICTED:
                survivors.append(passenger)
        free = [p for p in survivors if not p.suspicion.is_suspect]
        docket = [p for p in survivors if p.suspicion.is_suspect]
        rng.shuffle(docket)
        waiting = free + docket
        if any(p.is_poison for p in free):
            continue  # it runs freely, and the next core dies at once
        for passenger in docket:
            passenger.suspicion.is_on_trial = True
            if passenger.is_poison:
                break
            passenger.suspicion.cleared()
        else:
            return deaths, waiting


@given(st.integers(0, 20), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_a_prompt_that_kills_every_core_it_runs_on_kills_one_more_at_most(
    innocents: int, rng: random.Random
) -> None:
    poison = Passenger(is_poison=True)
    aboard = [poison, *(Passenger(is_poison=False) for _ in range(innocents))]
    deaths, left = ride_until_cleared(aboard, rng, tells=True)
    assert deaths == 2
    assert poison.is_convicted
    assert left == [p for p in left if not p.is_convicted]
    assert len(left) == innocents


@given(st.integers(0, 20), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_a_prompt_that_kills_whole_hosts_kills_at_most_three(
    innocents: int, rng: random.Random
) -> None:
    poison = Passenger(is_poison=True)
    aboard = [poison, *(Passenger(is_poison=False) for _ in range(innocents))]
    deaths, left = ride_until_cleared(aboard, rng, tells=False)
    assert deaths == MAX_UNPROVEN
    assert poison.is_convicted
    assert len(left) == innocents


def test_a_suspect_that_was_not_alone_on_trial_is_tried_again(suspicion: Suspicion) -> None:
    suspicion.crashed(is_core_death=True)
    suspicion.is_on_trial = True
    assert suspicion.crashed(is_core_death=True, was_alone=False) is Verdict.TRIAL
    suspicion.is_on_trial = True
    assert suspicion.crashed(is_core_death=True, was_alone=True) is Verdict.CONVICTED


def test_enough_tokens_without_a_crash_clear_earlier_deaths(suspicion: Suspicion) -> None:
    for _ in range(10 * MAX_CORE_DEATHS):
        assert suspicion.crashed(is_core_death=True) is Verdict.TRIAL
        suspicion.cleared(CLEAN_TOKENS)
