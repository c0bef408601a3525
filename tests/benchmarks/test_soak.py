import pytest

from benchmarks._soak_faults import AT_COORDINATOR, AT_SITES, ON_THE_WIRE, plan
from benchmarks._soak_look import Look, growth, slopes
from benchmarks.soak import names, soak


def test_faults_follow_from_the_seed_and_each_kind_comes_before_any_comes_again() -> None:
    sites = names(8)
    planned, kinds = plan(sites, 100, 1, 0.25), [*AT_SITES, *AT_COORDINATOR, *ON_THE_WIRE]
    assert planned == plan(sites, 100, 1, 0.25) != plan(sites, 100, 2, 0.25)
    assert {fault.kind for fault in planned[: len(kinds)]} == set(kinds)
    assert all(1 < fault.round < 100 and fault.site in sites for fault in planned)


def test_growth_is_told_of_what_grows_and_not_of_what_does_not() -> None:
    looks = [Look(n, float(n), {"grows": 1000 + 100 * n, "stays": 1000}, {"log": 50 * n}, {}) for n in range(1, 31)]
    told = growth(looks)
    assert told["stays"] == 1.0 and told["grows"] > 1.3
    assert slopes(looks) == {"log": 50}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_soak_ends_with_the_model_of_a_run_without_faults() -> None:
    result = soak(2, 3, 1, 1.0)
    assert result["same"] is True
    assert len(result["faults"]) == 1 and len(result["looks"]) == 3
