"""Claims are held against numbers by the rules that the page states."""

import pytest

from turborec.bench.claims import Claim, Verdict, judge, judge_unfinished, of_lever, of_variant

BASELINE = {
    "training_cpu_seconds": 10.0,
    "training_seconds": 20.0,
    "validation_cpu_seconds": 5.0,
    "peak_mib": 1000.0,
    "nonfinite_steps": 0,
    "recall@20": 0.10,
}


def judged(claim: Claim, clock: str = "cpu_seconds", **own: float | None) -> Verdict:
    return judge(claim, {**BASELINE, **own}, BASELINE, clock, "recall@20")


@pytest.mark.parametrize(
    ("seconds", "held"),
    [(5.0, "held"), (5.25, "held"), (5.3, "in part"), (6.6, "in part"), (6.7, "did not hold"), (20.0, "did not hold")],
)
def test_a_speed_holds_from_nine_tenths_of_the_gain_and_in_part_from_half_of_it(seconds, held):
    found = judged(Claim("training", 2.0), training_cpu_seconds=seconds)
    assert found.held == held and found.told == f"training of an epoch {10 / seconds:.2f}x as fast, 2x claimed: {held}"


def test_the_clock_that_counts_is_the_one_that_is_named():
    assert judged(Claim("training", 2.0), "seconds", training_seconds=10.0).held == "held"
    assert judged(Claim("training", 2.0), "cpu_seconds", training_seconds=10.0).held == "did not hold"


def test_an_epoch_is_training_and_validation():
    assert judged(Claim("epoch", 1.2), validation_cpu_seconds=2.5).told.startswith("an epoch with its validation 1.20x")


@pytest.mark.parametrize(("mib", "held"), [(500.0, "held"), (540.0, "held"), (560.0, "in part"), (800.0, "did not hold")])
def test_a_saving_of_memory(mib, held):
    assert judged(Claim("memory", 0.5), peak_mib=mib).held == held


def test_an_accelerator_s_memory_goes_before_the_processor_s():
    baseline = {**BASELINE, "accelerator_peak_mib": 400.0}
    own = {**baseline, "accelerator_peak_mib": 100.0}
    assert judge(Claim("memory", 0.5), own, baseline, "seconds", "recall@20").told.startswith("25% of the memory")


@pytest.mark.parametrize(("recall", "held"), [(0.11, "held"), (0.0981, "held"), (0.097, "did not hold")])
def test_as_good_is_no_worse_than_a_stated_share(recall, held):
    assert judged(Claim("quality", 0.98), **{"recall@20": recall}).held == held


def test_steps_with_numbers_that_are_none():
    assert judged(Claim("finite")).held == "held" and judged(Claim("finite"), nonfinite_steps=3).held == "did not hold"
    assert judged(Claim("overflow")).held == "did not hold" and judged(Claim("overflow"), nonfinite_steps=3).held == "held"


@pytest.mark.parametrize(
    ("left_out", "steps", "trainings", "held"),
    [
        (16, 100, 1, "held"),
        (17, 100, 1, "did not hold"),
        (18, 4000, 1, "held"),
        (40, 8000, 2, "held"),
        (41, 8000, 2, "did not hold"),
    ],
)
def test_steps_that_a_scaler_needs_to_find_its_scale_are_no_sign(left_out, steps, trainings, held):
    counts = {"nonfinite_steps": left_out, "skipped_steps": left_out, "steps": steps, "trainings": trainings}
    found = judged(Claim("finite"), **counts)
    assert found.held == held and f"{left_out} of them left out by the scaler of float16" in found.told
    assert judged(Claim("finite"), **counts | {"nonfinite_steps": left_out + 1}).held == "did not hold"


@pytest.mark.parametrize("of", ["training", "epoch", "validation", "memory", "quality", "finite", "overflow"])
def test_what_was_not_measured_is_no_verdict(of):
    assert judge(Claim(of), {}, BASELINE, "seconds", "recall@20").held == "not measured"
    assert judge(Claim(of), BASELINE, {}, "seconds", "recall@20").held == "not measured"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([], "not measured"),
        (["held", "held"], "held"),
        (["held", "did not hold"], "in part"),
        (["held", "not measured"], "held"),
        (["did not hold", "held"], "did not hold"),
    ],
)
def test_the_first_claim_is_what_a_variant_is_for(held, expected):
    assert of_variant([Verdict(one, "") for one in held]) == expected


def test_a_lever_tells_for_how_many_of_its_variants_it_held():
    assert of_lever(["held", "held", "not measured"]) == ("held", "held")
    assert of_lever(["not measured"]) == ("not measured", "not measured")
    assert of_lever(["did not hold", "in part", "held", "held"]) == (
        "in part",
        "held for 2, in part for 1, did not hold for 1 of 4",
    )


@pytest.mark.parametrize(
    ("state", "of", "held"),
    [
        ("diverged", "finite", "did not hold"),
        ("diverged", "overflow", "held"),
        ("diverged", "training", "not measured"),
        ("failed", "finite", "not measured"),
        ("finished", "quality", "not measured"),  # of which the baseline did not end
    ],
)
def test_of_a_training_that_did_not_end_hardly_anything_can_be_said(state: str, of: str, held: str) -> None:
    assert judge_unfinished(Claim(of), state).held == held
