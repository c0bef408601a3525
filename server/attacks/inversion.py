"""What the gradient of a single step on a single patient tells of the words in that patient's record.

A row of the token embedding has a gradient where its token stands in a prompt or a completion, and none elsewhere, so
the rows' lengths show which words were there (Melis et al. 2019, arXiv 1805.04049, section 4.1). That is why the update
of a single step at a single site is not for others to see in clear. What is attacked is the gradient, noised if the
study has [privacy]; Adam's first step, its sign, tells no more. Under a secure sum it is the sum of several sites'
gradients, where any site's patient may have brought a word.
"""

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from common.grpo.local import LocalTrainer
from common.models.policy import Policy
from common.study import Study
from server.attacks.membership import auc
from server.attacks.training import trainer_of


def words_told(policy: Policy, study: Study, questions: pl.DataFrame, patients: int, sites: int = 1) -> float:
    """How well rows of the embedding tell a patient's words from other patients' words: AUC, mean over patients.

    Args:
        questions: of one site; each of the first patients is taken alone, with one question.
        patients: how many are attacked; one whose answers were all right or all wrong has no gradient and is passed
            over.
        sites: whose gradients are seen added up; the patients that follow stand in for those of the other sites.
    """
    told: list[float] = []
    alone = alone_in_step(study)
    firsts = questions.unique("patient", keep="first", maintain_order=True)
    prompts = [set(row) for row in policy.encode(firsts["prompt"].to_list())]
    seen = sorted(prompts[0].union(*prompts) - prompts[0].intersection(*prompts))

    def gradient(number: int) -> Tensor:
        return embedding_gradient(trainer_of(policy, alone, firsts[number], f"inversion {number}"))

    for number in range(firsts.height):
        if len(told) == patients:
            break
        own = gradient(number)
        if own.any():
            others = [gradient((number + site) % firsts.height) for site in range(1, sites)]
            lengths = torch.stack([own, *others]).sum(0).norm(dim=1).double().cpu().numpy()
            told.append(auc(lengths[seen], np.array([token in prompts[number] for token in seen])))
    return float(np.mean(told)) if told else 0.5


def alone_in_step(study: Study) -> Study:
    """The study with one patient and one question a step."""
    privacy = study.privacy
    if privacy is not None:
        privacy = privacy.model_copy(update={"sample_rate": 1.0, "patients_per_step": 1, "questions_per_patient": 1})
    grpo = study.grpo.model_copy(update={"prompts_per_step": 1, "groups_at_once": None})
    return study.model_copy(update={"grpo": grpo, "privacy": privacy})


def embedding_gradient(trainer: LocalTrainer) -> Tensor:
    """Of one step, with regard to the input embedding: [vocabulary, hidden]."""
    trainer.policy.model.train()
    trainer.gradients(0)
    embedding = trainer.policy.model.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(embedding, nn.Embedding)
    gradient = embedding.weight.grad
    trainer.policy.model.zero_grad()
    return torch.zeros_like(embedding.weight) if gradient is None else gradient
