"""docs/new_hospital.md, walked as it stands: an invented German dialysis registry, from the table to questions."""

import random
import re
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from common.errors import UserError
from common.registry.config import read_registry_config
from common.registry.registry import load_registry

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "examples" / "dialyse.csv"
HEADER = [
    "Pat-Nr",
    "Nachname",
    "Geburtsdatum",
    "Alter (Jahre)",
    "Geschlecht",
    "Beginn",
    "Verfahren",
    "Zugang",
    "Grundkrankheit",
    "Diabetes",
    "Insulin",
    "Trockengewicht (kg)",
    "Kreatinin mg/dl",
    "Kreatinin µmol/l",
    "Kalium mmol/l",
    "Hb g/dl",
    "CRP mg/l",
    "Kt/V",
    "Begleiterkrankungen",
    "Bemerkung",
    "Verstorben",
    "Sterbedatum",
    "Krankenhaustage im Folgejahr",
]


def comma(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace(".", ",")


def invent(patients: int, seed: int) -> bytes:
    """A registry that no hospital keeps: German, in an older Windows encoding, decimal commas, and messy cells."""
    draw = random.Random(seed)
    lines = [HEADER]
    for number in range(patients):
        age, man = round(draw.triangular(24, 91, 70)), draw.random() < 0.6
        start = date(2022, 1, 3) + timedelta(days=draw.randrange(900))
        access = draw.choice(["Shunt", "Shunt", "shunt", "Prothese", "Katheter"])
        diabetes = draw.random() < 0.35
        creatinine = draw.gauss(8.2 if man else 6.6, 1.4)
        crp = draw.expovariate(1 / 9) + (12 if access == "Katheter" else 0)
        dead = draw.random() < 0.05 + max(0, age - 60) / 100
        cause = (
            "diabetische Nephropathie"
            if diabetes and draw.random() < 0.8
            else draw.choice(["Glomerulonephritis", "Hypertonie", "Zystennieren", "unbekannt"])
        )
        lines.append(
            [
                f"D{1000 + number}",
                draw.choice(["Schäfer", "Müller", "Groß", "Öztürk", "Weiß", "König", "Jäger", "Böhm"]),
                f"{date(2023 - age, 1 + draw.randrange(12), 1 + draw.randrange(28)):%d.%m.%Y}",
                str(age),
                "m" if man else "w",
                f"{start:%d.%m.%Y}",
                "Hämodiafiltration" if draw.random() < 0.4 else "Hämodialyse",
                access,
                cause,
                "j" if diabetes else "n",
                draw.choice(["j", "n"]) if diabetes else "",
                comma(draw.gauss(82 if man else 68, 12), 1),
                comma(creatinine, 1),
                f"{creatinine * 88.4:.0f}",
                comma(draw.gauss(5.1, 0.6), 1) if draw.random() < 0.95 else "k.A.",
                comma(draw.gauss(11.2, 1.1), 1),
                "<5" if crp < 5 else comma(crp, 0),
                comma(draw.gauss(1.45 if access != "Katheter" else 1.2, 0.15), 2),
                ",".join(sorted(draw.sample(["1", "2", "3", "4"], draw.choice([0, 1, 1, 2, 3])))),
                draw.choice(["", "", "kommt mit dem Taxi, Tochter anrufen", "Termin am Freitag verschoben, Akte"]),
                "j" if dead else "n",
                f"{start + timedelta(days=60 + draw.randrange(400)):%d.%m.%Y}" if dead else "",
                str(round(draw.expovariate(1 / (14 if dead else 6)))),
            ]
        )  # fmt: skip
    return "".join(";".join(line) + "\r\n" for line in lines).encode("cp1252")


def test_the_table_of_the_guide_is_invented() -> None:
    assert TABLE.read_bytes() == invent(patients=240, seed=7)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The guide's text; the current folder is one where its commands can be run."""
    (tmp_path / "docs" / "examples").mkdir(parents=True)
    shutil.copy(TABLE, tmp_path / "docs" / "examples")
    monkeypatch.chdir(tmp_path)
    return (ROOT / "docs" / "new_hospital.md").read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page, flags=re.DOTALL)


def call(command: str) -> str:
    done = CliRunner().invoke(app, command.split()[1:])
    assert done.exit_code == 0, done.output
    return done.output


def edited(text: str, diff: str) -> str:
    """The text with each group of `-` lines replaced by its `+` lines."""
    for group in diff.strip().split("\n\n"):
        old, new = ("".join(f"{line[1:]}\n" for line in group.splitlines() if line[0] == sign) for sign in "-+")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_guide_leads_from_the_table_to_questions(page: str) -> None:
    init, check = blocks(page, "console")
    command, _, output = init.partition("\n")
    assert call(command.removeprefix("$ ")) == output
    site = Path("dialyse.toml")
    draft = site.read_text(encoding="utf-8")
    (shown,) = blocks(page, "toml")
    assert [line for line in shown.splitlines() if line not in draft.splitlines()] == []
    (diff,) = blocks(page, "diff")
    site.write_text(edited(draft, diff), encoding="utf-8")
    command, _, output = check.partition("\n")
    said = " ".join(call(command.removeprefix("$ ")).split())
    assert [line for line in output.splitlines() if " ".join(line.split()) not in said] == []
    asked = call(f"wardround-site questions dialyse.toml --study {ROOT / 'studies' / 'demo.toml'} -n 40")
    assert "[Laboratory]" in asked and "Begleiterkrankungen: CAD, " in asked and "Insulin: no" in asked


def test_nobody_of_the_table_is_in_the_draft_or_on_the_screen(page: str) -> None:
    init = call(blocks(page, "console")[0].partition("\n")[0].removeprefix("$ "))
    written = init + Path("dialyse.toml").read_text(encoding="utf-8")
    cells = {cell for line in TABLE.read_text(encoding="cp1252").splitlines()[1:] for cell in line.split(";")}
    assert [cell for cell in cells - {"k.A.", "unbekannt"} if len(cell) > 3 and cell in written] == []


def test_the_refusal_of_the_guide_is_a_real_one(page: str) -> None:
    call(blocks(page, "console")[0].partition("\n")[0].removeprefix("$ "))
    site = Path("dialyse.toml")
    text, changed = re.subn(r'(kind = "number"), clean = \{ messy = "keep" \}', r"\1", site.read_text(encoding="utf-8"))
    assert changed == 1
    site.write_text(text, encoding="utf-8")
    (shown,) = blocks(page, "refused")
    with pytest.raises(UserError) as caught:
        load_registry(read_registry_config(site))
    assert caught.value.what.endswith(f"dialyse.csv: {shown.strip()}")
