import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.models.catalog import CODER_30B, CODER_480B
from qwenfleet.cluster.speed.experts import busiest_rank_experts, experts_touched, routing_shares

SKEWS = st.floats(0, 1)
TOKENS = st.floats(1, 4096)


def test_one_token_uses_its_own_experts():
    assert experts_touched(CODER_480B, 1) == pytest.approx(8)


@pytest.mark.parametrize(("tokens", "distinct"), [(16, 89.6), (64, 154.0)])
def test_uniform_routing_uses_as_many_experts_as_published(tokens, distinct):
    assert experts_touched(CODER_480B, tokens) == pytest.approx(distinct, abs=0.05)


@pytest.mark.parametrize(
    ("busiest", "share"), [(16, 0.598), (40, 0.846), (64, 0.941), (80, 0.970), (128, 0.9987)]
)
def test_skewed_routing_has_the_measured_shares(busiest, share):
    shares = routing_shares(CODER_480B, 1.0)
    assert sum(shares[:busiest]) / 8 == pytest.approx(share)


def test_the_skew_scales_to_other_numbers_of_experts():
    shares = routing_shares(CODER_30B, 1.0)
    assert len(shares) == 128
    assert sum(shares) == pytest.approx(8)
    assert sum(shares[:32]) / 8 == pytest.approx(0.846), "a quarter of the experts"


@given(TOKENS, SKEWS)
def test_skew_never_uses_more_experts(tokens, skew):
    uniform = experts_touched(CODER_480B, tokens)
    assert experts_touched(CODER_480B, tokens, skew) <= uniform + 1e-9


@given(TOKENS, st.floats(0, 100), SKEWS)
def test_more_tokens_never_use_fewer_experts(tokens, more, skew):
    fewer = experts_touched(CODER_30B, tokens, skew)
    assert fewer <= experts_touched(CODER_30B, tokens + more, skew) + 1e-9 <= 128 + 1e-6


@given(TOKENS, st.sampled_from([2, 4, 8, 16]), SKEWS)
def test_the_busiest_rank_is_above_the_mean_and_within_its_experts(tokens, ranks, skew):
    mean = experts_touched(CODER_480B, tokens, skew) / ranks
    busiest = busiest_rank_experts(CODER_480B, tokens, ranks, skew)
    assert mean - 1e-9 <= busiest <= 160 / ranks + 1e-9


def test_one_rank_is_its_own_busiest():
    assert busiest_rank_experts(CODER_480B, 16, 1) == experts_touched(CODER_480B, 16)


@pytest.mark.parametrize("skew", [-0.1, 1.1])
def test_a_skew_out_of_range_is_refused(skew):
    with pytest.raises(ValueError, match="from 0 to 1"):
        routing_shares(CODER_480B, skew)
