"""The site files that are shipped: each loads, plays the role it claims, and shares no patient with another."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from common.registry.config import RegistryConfig, read_registry_config, read_values
from common.registry.registry import Registry, concat_registries, load_registry
from common.registry.splits import split_patients

ROOT = Path(__file__).parents[3]
FOLDERS = [ROOT / "site_configs" / name for name in ("synthetic", "paper", "ist", "eicu", "mimic3", "mimic4_meds")]
SITES = [path for folder in FOLDERS for path in sorted(folder.glob("[a-z]*.toml"))]
BASELINE = "RCONSC SEX RSLEEP RATRIAL RCT RVISINF RHEP24 RASP3 RDEF1 RDEF2 RDEF3 RDEF4 RDEF5 RDEF6 RDEF7 RDEF8 STYPE"


@pytest.fixture(scope="module")
def ist() -> dict[str, RegistryConfig]:
    configs = {p.stem: read_registry_config(p) for p in sorted(FOLDERS[2].glob("[a-z]*.toml"))}
    place = Path(configs["ist-uk"].table.path)
    if not place.exists():
        pytest.skip(f"the IST table is not at {place}; set WARDROUND_IST to its path")
    return configs


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_a_site_is_named_after_its_file(path: Path) -> None:
    assert read_registry_config(path).site == path.stem


def training() -> list[Registry]:
    return [
        load_registry(read_registry_config(FOLDERS[0] / f"synthetic-{name}.toml"))
        for name in ("north", "south", "east", "west")
    ]


def test_synthetic_hospitals_hold_different_patients_of_the_declared_number() -> None:
    paths = sorted(FOLDERS[0].glob("[a-z]*.toml"))
    assert len(paths) == 7
    patients: Counter[str] = Counter()
    for path in paths:
        config = read_registry_config(path)
        registry = load_registry(config)
        assert config.synthetic is not None and registry.frame.height == config.synthetic.patients
        assert registry.left_out == ()
        patients.update(registry.frame["patient"])
    assert max(patients.values()) == 1


def test_the_demo_is_part_of_the_whole_dictionary_which_the_generator_can_fill() -> None:
    site = read_values(FOLDERS[0] / "synthetic-north.toml")
    whole = read_values(FOLDERS[0] / "_registry_full.toml")
    registry = load_registry(read_registry_config(FOLDERS[0] / "full", {**site, **whole}))
    assert {f["column"] for f in site["features"]} < {f.column for f in registry.features}
    assert registry.left_out == ()


def test_printed_values_of_the_demo_are_one_or_two_words() -> None:
    for registry in training():
        for feature in registry.features:
            if feature.kind == "category":
                values = registry.frame[feature.column].drop_nulls().unique().to_list()
                assert 2 <= len(values) <= 5
                assert max(len(value.split()) for value in values) <= 2


def codes(column: pl.Series) -> np.ndarray:
    if column.dtype == pl.Float64:
        return column.to_numpy()
    values = sorted(column.drop_nulls().unique())
    return column.replace_strict(values, list(range(len(values))), default=None, return_dtype=pl.Float64).to_numpy()


def test_the_demo_can_be_reasoned_out_and_not_guessed() -> None:
    """What makes it a fair sanity check: boosting on the other columns is far above the most frequent value."""
    registry = concat_registries(training(), "pooled")
    inside = registry.frame["patient"].is_in(split_patients(registry.frame["patient"], 1, 0.2)["test"]).to_numpy()
    baseline = [f for f in registry.features if f.known == "baseline"]
    guesses, reasoned = [], []
    for target in (f for f in baseline if f.kind == "category" and f.ask):
        shown = [codes(registry.frame[f.column]) for f in baseline if f.column != target.column]
        record, answer = np.stack(shown, axis=1), codes(registry.frame[target.column])
        present = ~np.isnan(answer)
        train, test = present & ~inside, present & inside
        common = np.bincount(answer[train].astype(int)).argmax()
        guesses.append((answer[test] == common).mean())
        model = HistGradientBoostingClassifier(max_iter=25, learning_rate=0.2, max_leaf_nodes=8, random_state=0)
        reasoned.append(model.fit(record[train], answer[train]).score(record[test], answer[test]))
    assert 0.35 < np.mean(guesses) < 0.55
    assert 0.70 < np.mean(reasoned) < 0.92
    assert min(np.subtract(reasoned, guesses)) > 0.1


def test_ist_sites_are_the_whole_trial_without_overlap(ist: dict[str, RegistryConfig]) -> None:
    registries = {name: load_registry(config) for name, config in ist.items()}
    patients = [p for registry in registries.values() for p in registry.frame["patient"]]
    source = pl.scan_csv(ist["ist-uk"].table.path, infer_schema=False).select(pl.len()).collect().item()
    assert len(patients) == len(set(patients)) == source
    assert registries["ist-new-zealand"].frame.height == 453


def test_ist_declares_every_column_once_and_outcomes_as_such(ist: dict[str, RegistryConfig]) -> None:
    config = ist["ist-uk"]
    header = pl.scan_csv(config.table.path, infer_schema=False).collect_schema().names()
    declared = [f.column for f in config.features] + list(config.never)
    assert sorted(declared) == sorted(header)
    asked = {f.column for f in config.features if f.kind == "category" and f.ask}
    assert asked == set(BASELINE.split())
    assert {f.column for f in config.features if f.known == "outcome"} == {"ID14", "OCCODE"}


def test_ist_prints_words_and_not_codes(ist: dict[str, RegistryConfig]) -> None:
    frame = load_registry(ist["ist-uk"]).frame
    assert set(frame["OCCODE"].drop_nulls()) == {"dead", "dependent", "independent", "recovered"}
    assert set(frame["RCONSC"]) == {"alert", "drowsy", "unconscious"}
    assert set(frame["RDEF4"]) == {"yes", "no", "untestable"}
    assert frame["AGE"].is_between(10, 110).all()
