"""What causes what in the synthetic sepsis registry: the one table that the generator draws from.

A patient has a few hidden organ states (standard normal when nothing pushes them, cut into three levels)
and a hidden focus and place of acquisition; every column of the table reflects them. A model that reasons
over a record finds a state from several of its imperfect reflections. The directions are common clinical
knowledge (Sepsis-3, SOFA, empirical therapy by focus); the strengths are invented, chosen so that one
column alone tells less than 0.5 nats about most others and all of them together tell much.

Times: a name that ends in `@3` is the state on ICU day 3; without one it is day 1.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class State:
    """Hidden: sum of weight x cause + independent normal noise that makes the variance about 1 again."""

    name: str
    causes: dict[str, float]
    cuts: tuple[float, float]
    why: str


@dataclass(frozen=True)
class Grade:
    """A charted category: one value per level of its state, off by one level with probability 1 - `faithful`."""

    column: str
    state: str
    values: tuple[str, str, str]
    why: str
    faithful: float = 0.885


@dataclass(frozen=True)
class Choice:
    """A category drawn by probabilities that depend on other categories, in the order of `given`."""

    column: str
    given: tuple[str, ...]
    weights: dict[tuple[str, ...], dict[str, float]]
    why: str


@dataclass(frozen=True)
class Measure:
    """A number: `centre` + sum of weight x cause + noise of sd `spread`; with `log`, all of it in logarithms.

    `lab` values are multiplied by the site's calibration and are missing more often.
    """

    column: str
    centre: float
    causes: dict[str, float]
    spread: float
    low: float
    high: float
    why: str
    decimals: int = 0
    log: bool = False
    lab: bool = False


@dataclass(frozen=True)
class Event:
    """Yes or no: probability logistic(`bias` + sum of weight x cause). Columns are centred as given."""

    column: str
    bias: float
    causes: dict[str, float]
    why: str
    centres: dict[str, float] = field(default_factory=dict)
    only_if: str = ""
    """A yes/no column without which this one cannot be yes; with it, this one always is."""


CASE_MIX: dict[str, dict[str, float]] = {
    "mixed": {"lung": 0.28, "urine": 0.26, "abdomen": 0.25, "skin": 0.21},
    "surgical": {"lung": 0.18, "urine": 0.17, "abdomen": 0.40, "skin": 0.25},
    "medical": {"lung": 0.36, "urine": 0.32, "abdomen": 0.18, "skin": 0.14},
    "urban": {"lung": 0.26, "urine": 0.20, "abdomen": 0.22, "skin": 0.32},
}
"""Share of each focus of infection, by kind of hospital."""

HOSPITAL_ACQUIRED = {"mixed": 0.45, "surgical": 0.55, "medical": 0.40, "urban": 0.50}

STATES = (
    State("frailty", {"age_z": 0.5}, (-0.1, 0.8), "age brings frailty"),
    State("diabetes", {"age_z": 0.1}, (0.0, 0.8), "a little commoner in the old"),
    State("shock", {"severity": 0.45, "focus=abdomen": 0.2}, (0.0, 0.8), "vasodilation and leak"),
    State("kidney", {"severity": 0.3, "shock": 0.35, "focus=urine": 0.2}, (0.0, 0.8), "AKI from poor perfusion"),
    State("lung", {"severity": 0.3, "focus=lung": 0.5}, (0.1, 0.9), "ARDS, direct with pneumonia"),
    State("brain", {"severity": 0.3, "frailty": 0.25}, (0.0, 0.9), "septic encephalopathy, more in the frail"),
    State("clotting", {"severity": 0.3, "shock": 0.25}, (0.0, 0.9), "consumption of platelets"),
    State("liver", {"severity": 0.25, "focus=abdomen": 0.4}, (0.1, 0.9), "cholestasis, biliary focus"),
    State("course", {"severity": 0.35, "shock": 0.2, "untreated": 0.5}, (-0.2, 0.6), "wrong drug, worse course"),
    State("shock@3", {"shock": 0.65, "course": 0.6}, (0.0, 0.8), "carry-over and course"),
    State("kidney@3", {"kidney": 0.7, "course": 0.5}, (0.0, 0.8), "carry-over and course"),
    State("lung@3", {"lung": 0.7, "course": 0.5}, (0.0, 0.8), "carry-over and course"),
    State("shock@7", {"shock@3": 0.65, "course": 0.5}, (0.3, 1.1), "carry-over and course"),
    State("kidney@7", {"kidney@3": 0.75, "course": 0.4}, (0.2, 1.0), "carry-over and course"),
    State("lung@7", {"lung@3": 0.7, "course": 0.4}, (0.2, 1.0), "carry-over and course"),
)

GRADES = (
    Grade("frailty", "frailty", ("fit", "vulnerable", "frail"), "the scale itself"),
    Grade("living", "frailty", ("alone", "with help", "care home"), "the frail need help at home"),
    Grade("mobility", "frailty", ("walks", "with aid", "bedbound"), "the frail walk badly"),
    Grade("diabetes", "diabetes", ("none", "type 2", "insulin"), "the diagnosis"),
    Grade("diabetes_drug", "diabetes", ("none", "tablets", "insulin"), "treatment follows the diagnosis"),
    Grade("hba1c_grade", "diabetes", ("normal", "raised", "high"), "long-term glucose"),
    Grade("perfusion", "shock", ("warm", "cool", "mottled"), "skin perfusion in shock"),
    Grade("vasopressor", "shock", ("none", "low dose", "high dose"), "given for shock"),
    Grade("map_grade", "shock", ("normal", "low", "very low"), "mean arterial pressure in shock"),
    Grade("steroids", "shock", ("no", "no", "yes"), "hydrocortisone in refractory shock"),
    Grade("aki_stage", "kidney", ("none", "stage 1-2", "stage 3"), "AKI by creatinine"),
    Grade("urine_grade", "kidney", ("normal", "oliguria", "anuria"), "urine output falls in AKI"),
    Grade("fluid_balance", "kidney", ("even", "positive", "overload"), "fluid is kept in AKI"),
    Grade("rrt", "kidney", ("no", "no", "yes"), "renal replacement for AKI stage 3", 0.95),
    Grade("oxygen", "lung", ("mask", "high flow", "ventilated"), "respiratory support for ARDS"),
    Grade("chest_film", "lung", ("clear", "one-sided", "bilateral"), "infiltrates in ARDS"),
    Grade("pf_grade", "lung", ("over 300", "200-300", "under 200"), "PaO2/FiO2 class"),
    Grade("alertness", "brain", ("alert", "confused", "coma"), "encephalopathy"),
    Grade("motor", "brain", ("obeys", "localises", "none"), "best motor response"),
    Grade("bleeding", "clotting", ("none", "oozing", "major"), "low platelets bleed"),
    Grade("transfusion", "clotting", ("none", "plasma", "platelets"), "given for bleeding and low platelets"),
    Grade("perfusion@3", "shock@3", ("warm", "cool", "mottled"), "as on day 1"),
    Grade("vasopressor@3", "shock@3", ("none", "low dose", "high dose"), "as on day 1"),
    Grade("urine_grade@3", "kidney@3", ("normal", "oliguria", "anuria"), "as on day 1"),
    Grade("oxygen@3", "lung@3", ("mask", "high flow", "ventilated"), "as on day 1"),
)

CHOICES = (
    Choice(
        "imaging",
        ("focus",),
        {
            ("lung",): {"abnormal": 0.96, "clear": 0.04},
            ("abdomen",): {"abnormal": 0.95, "clear": 0.05},
            ("urine",): {"abnormal": 0.06, "clear": 0.94},
            ("skin",): {"abnormal": 0.04, "clear": 0.96},
        },
        "pneumonia and abdominal sepsis show on a scan",
    ),
    Choice(
        "pain",
        ("focus",),
        {
            ("lung",): {"no": 0.95, "yes": 0.05},
            ("abdomen",): {"no": 0.04, "yes": 0.96},
            ("urine",): {"no": 0.06, "yes": 0.94},
            ("skin",): {"no": 0.95, "yes": 0.05},
        },
        "belly or flank pain with an abdominal or urinary focus",
    ),
    Choice(
        "sample",
        ("focus",),
        {
            ("lung",): {"secretions": 0.95, "tissue": 0.05},
            ("urine",): {"secretions": 0.95, "tissue": 0.05},
            ("abdomen",): {"secretions": 0.06, "tissue": 0.94},
            ("skin",): {"secretions": 0.04, "tissue": 0.96},
        },
        "the culture is taken where the focus is",
    ),
    Choice(
        "acquired",
        ("place",),
        {("community",): {"community": 0.93, "hospital": 0.07}, ("hospital",): {"community": 0.07, "hospital": 0.93}},
        "charted place of acquisition",
    ),
    Choice(
        "came_from",
        ("place",),
        {("community",): {"emergency": 0.93, "ward": 0.07}, ("hospital",): {"emergency": 0.08, "ward": 0.92}},
        "hospital-acquired sepsis comes from a ward",
    ),
    Choice(
        "device",
        ("place",),
        {("community",): {"no": 0.92, "yes": 0.08}, ("hospital",): {"no": 0.10, "yes": 0.90}},
        "lines and catheters in those who were already in hospital",
    ),
    Choice(
        "prior_antibiotics",
        ("place",),
        {("community",): {"no": 0.90, "yes": 0.10}, ("hospital",): {"no": 0.12, "yes": 0.88}},
        "those already in hospital have had antibiotics",
    ),
    Choice(
        "organism",
        ("focus", "place"),
        {
            ("lung", "community"): {"Pneumococcus": 0.90, "Klebsiella": 0.06, "S. aureus": 0.04},
            ("lung", "hospital"): {"Klebsiella": 0.88, "Pneumococcus": 0.06, "S. aureus": 0.06},
            ("urine", "community"): {"E. coli": 0.92, "Klebsiella": 0.08},
            ("urine", "hospital"): {"Klebsiella": 0.88, "E. coli": 0.12},
            ("abdomen", "community"): {"E. coli": 0.90, "Anaerobes": 0.10},
            ("abdomen", "hospital"): {"Anaerobes": 0.88, "E. coli": 0.06, "Klebsiella": 0.06},
            ("skin", "community"): {"S. aureus": 0.92, "Anaerobes": 0.04, "E. coli": 0.04},
            ("skin", "hospital"): {"S. aureus": 0.88, "Klebsiella": 0.08, "Anaerobes": 0.04},
        },
        "each focus has its organisms, hospital flora differ",
    ),
    Choice(
        "resistance",
        ("place", "prior_antibiotics"),
        {
            ("community", "no"): {"no": 0.96, "yes": 0.04},
            ("community", "yes"): {"no": 0.75, "yes": 0.25},
            ("hospital", "no"): {"no": 0.45, "yes": 0.55},
            ("hospital", "yes"): {"no": 0.06, "yes": 0.94},
        },
        "ESBL or MRSA after hospital stay and earlier antibiotics",
    ),
    Choice(
        "drug_class",
        ("focus", "place"),
        {
            ("lung", "community"): {"cephalosporin": 0.92, "penicillin": 0.04, "glycopeptide": 0.04},
            ("urine", "community"): {"cephalosporin": 0.90, "penicillin": 0.04, "carbapenem": 0.06},
            ("abdomen", "community"): {"penicillin": 0.90, "cephalosporin": 0.04, "carbapenem": 0.06},
            ("skin", "community"): {"penicillin": 0.90, "cephalosporin": 0.04, "glycopeptide": 0.06},
            ("lung", "hospital"): {"glycopeptide": 0.86, "carbapenem": 0.08, "cephalosporin": 0.06},
            ("urine", "hospital"): {"carbapenem": 0.88, "cephalosporin": 0.08, "glycopeptide": 0.04},
            ("abdomen", "hospital"): {"carbapenem": 0.90, "penicillin": 0.06, "glycopeptide": 0.04},
            ("skin", "hospital"): {"glycopeptide": 0.92, "penicillin": 0.04, "carbapenem": 0.04},
        },
        "empirical therapy goes by focus and place of acquisition",
    ),
)

COVERS: dict[str, dict[str, bool]] = {
    "cephalosporin": {"E. coli": False, "Klebsiella": False, "Pneumococcus": False, "S. aureus": False},
    "penicillin": {"Anaerobes": False, "E. coli": False, "Pneumococcus": False, "S. aureus": False},
    "carbapenem": {"Anaerobes": True, "E. coli": True, "Klebsiella": True, "Pneumococcus": True},
    "glycopeptide": {"S. aureus": True, "Pneumococcus": True},
}
"""Which class works against which organism; True: also against a resistant one. Not listed: does not work."""

APPROPRIATE_CHARTED = 0.95
"""How often `appropriate` is charted as the rule says."""

_CARRY = "carry-over and course"
MEASURES = (
    Measure("weight", 74, {"age_z": -3, "male": 8}, 13, 38, 160, "men heavier, the old lighter"),
    Measure("charlson", 3.0, {"age_z": 1.0, "frailty": 0.9, "diabetes": 0.6}, 1.1, 0, 14, "comorbidity with age"),
    Measure("sofa_cardio", 1.7, {"shock": 1.2}, 0.6, 0, 4, "pressure and vasopressor dose"),
    Measure("sofa_renal", 1.4, {"kidney": 1.1}, 0.6, 0, 4, "creatinine and urine output"),
    Measure("sofa_resp", 1.8, {"lung": 1.1}, 0.6, 0, 4, "PaO2/FiO2"),
    Measure("sofa_cns", 1.2, {"brain": 1.1}, 0.6, 0, 4, "Glasgow coma scale"),
    Measure("sofa_coag", 1.0, {"clotting": 1.0}, 0.6, 0, 4, "platelets"),
    Measure("sofa_liver", 0.8, {"liver": 1.0}, 0.6, 0, 4, "bilirubin"),
    Measure("gcs", 13, {"brain": -2.4}, 1.6, 3, 15, "encephalopathy"),
    Measure("map", 72, {"shock": -8}, 7, 35, 120, "shock lowers pressure"),
    Measure("heart_rate", 104, {"shock": 9, "severity": 4}, 14, 40, 190, "compensation"),
    Measure("temperature", 38.1, {"frailty": -0.3}, 0.8, 33.5, 41.5, "the frail have less fever", 1),
    Measure("resp_rate", 24, {"lung": 4, "shock": 1.5}, 4, 8, 50, "hypoxia and acidosis"),
    Measure("lactate", 0.95, {"shock": 0.45, "liver": 0.1}, 0.3, 0.4, 22, "hypoperfusion", 1, True, True),
    Measure("lactate@2", 0.85, {"shock": 0.3, "shock@3": 0.2}, 0.3, 0.4, 22, _CARRY, 1, True, True),
    Measure("lactate@3", 0.7, {"shock@3": 0.45}, 0.3, 0.4, 22, _CARRY, 1, True, True),
    Measure("lactate@7", 0.5, {"shock@7": 0.4}, 0.3, 0.4, 22, _CARRY, 1, True, True),
    Measure("creatinine", 0.35, {"kidney": 0.5, "male": 0.1}, 0.3, 0.3, 14, "AKI", 1, True, True),
    Measure("creatinine@2", 0.38, {"kidney": 0.45, "kidney@3": 0.1}, 0.3, 0.3, 14, _CARRY, 1, True, True),
    Measure("creatinine@3", 0.3, {"kidney@3": 0.5}, 0.3, 0.3, 14, _CARRY, 1, True, True),
    Measure("creatinine@7", 0.2, {"kidney@7": 0.5}, 0.3, 0.3, 14, _CARRY, 1, True, True),
    Measure("urine_output", 6.9, {"kidney": -0.7}, 0.45, 0, 6000, "AKI", 0, True),
    Measure("pf_ratio", 5.35, {"lung": -0.38}, 0.22, 40, 600, "ARDS", 0, True),
    Measure("pf_ratio@2", 5.38, {"lung": -0.25, "lung@3": -0.12}, 0.22, 40, 600, _CARRY, 0, True),
    Measure("pf_ratio@3", 5.42, {"lung@3": -0.38}, 0.22, 40, 600, _CARRY, 0, True),
    Measure("pf_ratio@7", 5.5, {"lung@7": -0.35}, 0.22, 40, 600, _CARRY, 0, True),
    Measure("platelets", 5.0, {"clotting": -0.5}, 0.3, 5, 800, "consumption", 0, True, True),
    Measure("bilirubin", 0.25, {"liver": 0.7}, 0.35, 0.2, 40, "cholestasis", 1, True, True),
    Measure("crp", 5.0, {"severity": 0.15}, 0.5, 5, 500, "inflammation", 0, True, True),
    Measure("crp@7", 4.2, {"course": 0.45}, 0.35, 2, 500, "falls with a good course", 0, True, True),
    Measure("glucose", 5.0, {"diabetes": 0.28}, 0.2, 40, 800, "diabetes", 0, True, True),
)

EVENTS = (
    Event(
        "icu_death",
        -2.2,
        {"sofa": 0.6, "lactate": 0.6, "age_z": 1.2, "course": 1.2},
        "organ failure, hypoperfusion, age and the course decide",
        {"sofa": 8.0, "lactate": 2.8},
    ),
    Event(
        "hospital_death",
        -1.9,
        {"age_z": 0.6, "frailty": 0.5},
        "who dies in the ICU dies in hospital; on the ward the old and frail",
        only_if="icu_death",
    ),
)
