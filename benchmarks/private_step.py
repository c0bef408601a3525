"""A private step (common/grpo/patient_dp.py) against the plain one on the same questions: its time and its memory.

LoRA on a random model of the built-in kind (3 layers of 256), the first hospital of studies/demo.toml, one
question of each of 12 patients, 8 completions each. The plain step takes the 12 groups together; the private one takes
each patient's gradient alone, clips it, and adds noise. Each side has a process of its own. `cost_ratio` is the private
step's CPU seconds by the plain one's, generation and optimiser included, `memory_ratio` that of the peaks above the
loaded model.

    OMP_NUM_THREADS=1 python -m benchmarks.private_step [--quick]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from platformdirs import user_cache_path
from transformers.utils.logging import disable_progress_bar

from benchmarks._apart import apart
from common.grpo.local import LocalTrainer
from common.grpo.patient_dp import PatientTrainer
from common.models.builtin import build_builtin
from common.models.policy import load_policy
from common.privacy import Privacy
from common.study import Study, parse_study, read_study
from common.tasks.site_questions import site_questions
from server.frames import registries

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
PATIENTS = 12
STEPS, QUICK_STEPS = 6, 2
PRIVACY = Privacy(clip=0.1, noise_multiplier=1.0, sample_rate=1.0, patients_per_step=PATIENTS)


def chosen_study(steps: int) -> Study:
    study = read_study(DEMO)
    values = study.model_dump(mode="json", exclude_none=True)
    values["sites"] |= {"train": list(study.sites.train[:1]), "unseen": []}
    values["model"] |= {"trainable": "lora", "builtin": {"hidden": 256, "layers": 3, "warmup_steps": 1}}
    values["questions"] |= {"per_patient": 1}
    values["grpo"] |= {"prompts_per_step": PATIENTS, "beta": 0.0}
    values["rounds"] |= {"rounds": 1, "local_steps": steps}
    return parse_study(values, str(DEMO))


def make_model(study: Study, cache: Path) -> Path:
    return build_builtin(study, registries(study, study.sites.public)[0], cache)


def memory_kib(field: str) -> int:
    """`VmRSS` or `VmHWM` (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def step(side: str, study: Study, model: Path, folder: Path) -> tuple[float, float]:
    """CPU seconds of a step, after one that is not counted, and MiB at the peak. Runs in a process of its own."""
    torch.set_num_threads(1)
    questions = site_questions(registries(study, study.sites.train)[0], study).train.head(PATIENTS)
    policy = load_policy(study, model)
    if side == "private":
        trainer: LocalTrainer = PatientTrainer(
            policy, study.model_copy(update={"privacy": PRIVACY}), questions, side, study.total_steps
        )
        assert isinstance(trainer, PatientTrainer)
        trainer.begin(bytes(32), "benchmark")
    else:
        trainer = LocalTrainer(policy, study, questions, side, study.total_steps)
    before = memory_kib("VmRSS")
    trainer.run(0, 1, folder)
    start = time.process_time()
    trainer.run(1, study.total_steps - 1, folder)
    return (time.process_time() - start) / (study.total_steps - 1), (memory_kib("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    given = parser.parse_args()
    disable_progress_bar()
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    study = chosen_study(QUICK_STEPS if given.quick else STEPS)
    model = apart(make_model, study, user_cache_path("wardround") / "models")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("plain", "private"):
            found[side] = apart(step, side, study, model, Path(folder) / side)
            print(f"{side:8}{found[side][0]:>8.3f} s a step{found[side][1]:>9.0f} MiB", flush=True)
    ratios = (private / plain for private, plain in zip(found["private"], found["plain"], strict=True))
    print(
        json.dumps({name: round(value, 3) for name, value in zip(("cost_ratio", "memory_ratio"), ratios, strict=True)})
    )


if __name__ == "__main__":
    main()
