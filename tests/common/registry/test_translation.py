"""A Korean registry read through a declared dictionary."""

from pathlib import Path
from typing import Any
from unicodedata import normalize

import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import RegistryConfig, read_registry_config
from common.registry.registry import load_registry

SITE = """
site = "korea"
patient = "patient_no"
features = [
  { column = "age", name = "Age", unit = "years", section = "S", kind = "number", missing = ["not measured"] },
  { column = "sex", name = "Sex", section = "S", kind = "category", values = { M = "male", F = "female" } },
  { column = "focus", name = "Focus", section = "S", kind = "category" },
]
[table]
source = "csv"
path = "korea.csv"
where = { ward = ["ICU"] }
[translate]
headers = { "환자번호" = "patient_no", "나이" = "age", "성별" = "sex" }
values = { "측정 안함" = "not measured", "기타" = "other" }
[translate.columns]
"성별" = { "남" = "M", "여" = "F" }
focus = { "폐" = "lung" }
"""
TEXT = "환자번호,나이,성별,focus,ward\n1,61,남,폐,ICU\n2,측정 안함,여,기타,ICU\n3,70,남,폐,집\n4,55,여,폐,ICU\n"
DICTIONARY = """column,from,to
#header,환자번호,patient_no
#header,나이,age
#header,성별,sex
,측정 안함,not measured

,기타,other
성별,남,M
성별,여,F
focus,폐,lung
"""
FRAME = [("1", 61.0, "male", "lung"), ("2", None, "female", "other"), ("4", 55.0, "female", "lung")]


def read(folder: Path, site: str = SITE, text: str = TEXT, encoding: str = "utf-8") -> RegistryConfig:
    (folder / "korea.csv").write_bytes(text.encode(encoding))
    (folder / "korea.toml").write_text(site, encoding="utf-8")
    return read_registry_config(folder / "korea.toml")


def with_file(policy: str = "") -> str:
    return SITE.partition("[translate]")[0] + f'[translate]\nfile = "words.csv"\n{policy}'


def test_headers_and_values_are_translated_before_all_else(tmp_path: Path) -> None:
    assert load_registry(read(tmp_path)).frame.rows() == FRAME


def test_a_dictionary_file_says_the_same_as_the_table(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text(DICTIONARY, encoding="utf-8-sig")
    assert load_registry(read(tmp_path, with_file())).frame.rows() == FRAME


def test_the_site_file_wins_over_the_dictionary_file(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text(DICTIONARY, encoding="utf-8")
    own = read(tmp_path, with_file('values = { "기타" = "elsewhere" }'))
    assert load_registry(own).frame["focus"].to_list() == ["lung", "elsewhere", "lung"]


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_korean_encodings_and_decomposed_syllables(tmp_path: Path, encoding: str) -> None:
    declared = SITE.replace('source = "csv"', f'source = "csv"\nencoding = "{encoding}"')
    assert load_registry(read(tmp_path, declared, encoding=encoding)).frame.rows() == FRAME
    assert load_registry(read(tmp_path, text=normalize("NFD", TEXT))).frame.rows() == FRAME


def refusal(config: RegistryConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        load_registry(config)
    assert not any(word in str(caught.value) for word in ("환자", "폐", "Zaphod"))
    return caught.value


def test_an_untranslated_header_follows_the_policy(tmp_path: Path) -> None:
    config = read(tmp_path, SITE.replace("[translate]", '[translate]\nother_headers = "refuse"'))
    assert "no word for the name of column 4 (2 such columns)" in refusal(config).what


def test_untranslated_values_follow_the_policy(tmp_path: Path) -> None:
    strict = SITE.replace("[translate]", '[translate]\nother_values = "refuse"')
    text = TEXT.replace("1,61,남,폐", "1,61,Zaphod,폐")
    assert load_registry(read(tmp_path, strict)).frame.rows() == FRAME
    assert load_registry(read(tmp_path, text=text)).frame["sex"].to_list() == ["Zaphod", "female", "female"]
    assert "no word for 1 of 3 values of the column 'sex'" in refusal(read(tmp_path, strict, text)).what


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    config = read(tmp_path, text=TEXT.replace("ward", "sex"))
    assert "two columns are called 'sex' once translated" in refusal(config).what
    with pytest.raises(UserError, match="two headers are translated to 'age'"):
        read(tmp_path, SITE.replace('"sex", "나이"', "").replace('"patient_no", ', '"age", '))


BAD: dict[str, tuple[Any, str]] = {
    "not there": (None, "cannot be read"),
    "not UTF-8": (DICTIONARY.encode("cp949"), "not UTF-8"),
    "another table": (TEXT.encode(), "no dictionary"),
    "a short line": (f"{DICTIONARY}focus,폐\n".encode(), "is not column,from,to"),
    "nothing to translate": (f"{DICTIONARY}focus,,lung\n".encode(), "is not column,from,to"),
    "a second word": (f"{DICTIONARY}focus,폐,kidney\n".encode(), "a second time"),
    "two headers of one name": (f"{DICTIONARY}#header,연령,age\n".encode(), "translated to one name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_faulty_dictionary_file_is_refused(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    if content is not None:
        (tmp_path / "words.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, with_file())
    assert "words.csv" in caught.value.what and caught.value.remedy


def test_a_translated_parquet_table(tmp_path: Path) -> None:
    pl.DataFrame(
        {"환자번호": [1, 2], "나이": [61, 70], "성별": ["남", "여"], "focus": ["폐", "기타"], "ward": "ICU"}
    ).write_parquet(tmp_path / "korea.parquet")
    config = read(tmp_path, SITE.replace("csv", "parquet"))
    assert load_registry(config).frame.rows() == [("1", 61.0, "male", "lung"), ("2", 70.0, "female", "other")]
