"""The example in docs/site_configs.md, run as it stands."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from common.registry.cleaning.declared import Clean
from common.registry.config import RegistryConfig, Table
from common.registry.translation import Translate

PAGE = Path(__file__).parents[3] / "docs" / "site_configs.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HOSPITAL_TABLE", raising=False)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"```(?:csv|toml) (\S+)\n(.*?)```", text, flags=re.DOTALL))
    assert set(files) == {"registry.csv", "hospital.toml"}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(compile(program, str(PAGE), "exec"), names)
    registry = names["registry"]
    assert registry.frame["patient"].to_list() == ["a7", "b2", "c9"]
    assert registry.frame["vaso"].to_list() == ["none", "given", "none"]
    assert registry.left_out == ()
    assert "abdomen" in capsys.readouterr().out


def test_the_examples_of_cleaning_and_of_sources_are_valid() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)]
    tables = [tomllib.loads(block)["table"] for block in blocks if block.lstrip().startswith("[table]")]
    assert [Table.model_validate(table).source for table in tables] == ["excel", "sql"]
    (cleaning,) = [tomllib.loads(block) for block in blocks if block.lstrip().startswith("features")]
    config = RegistryConfig.model_validate({"site": "a", "patient": "id", "table": tables[0], **cleaning})
    assert all(feature.clean.model_dump(exclude_defaults=True) for feature in config.features)
    (words,) = [tomllib.loads(block) for block in blocks if block.lstrip().startswith("[translate]")]
    assert Translate.model_validate(words["translate"]).words("sex")["여"] == "female"
    (own,) = [tomllib.loads(block) for block in blocks if block.lstrip().startswith("extends")]
    assert Clean.model_validate(own["clean"]["creatinine"]).convert is not None
