from common.questions.randomness import choose


def test_choosing_is_stable_when_a_patient_arrives() -> None:
    patients = [f"p{i}" for i in range(200)]
    before, after = choose(patients, 20, 1), choose([*patients, "new"], 20, 1)
    assert len(before) == 20 and len(set(after) - set(before)) <= 1
    assert choose(patients, 500, 1) == sorted(patients)
