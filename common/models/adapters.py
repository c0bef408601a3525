"""LoRA on all linear layers: which factors a round trains, and what of a model changes over a run.

W' = W + (alpha / rank) B A, with A [rank, in] and B [out, rank] (Hu et al. 2021, arXiv 2106.09685). The mean of B times
the mean of A is not the mean of B A, so how sites' factors become one is declared (`model.lora.average`):

    frozen-a      A stays as it was drawn: FFA-LoRA (Sun et al. 2024, arXiv 2403.12313)
    alternating   rounds train B and A by turns: RoLoRA (Chen et al. 2025, arXiv 2502.01755)
    residual      both; what their mean product lacks goes into W: FedEx-LoRA (Singhal et al. 2024, arXiv 2410.09432)
    separate      both, and what their mean product lacks is lost
"""

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from common.errors import UserError
from common.model import Average, Model

ADAPTER = "default"
"""PEFT's and TRL's name for the adapter that is trained."""
FACTOR_A, FACTOR_B, FROZEN = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight", ".base_layer.weight"
"""How the names of a layer's tensors end: its factors, and the weight that they add to."""
FACTORS = {"lora_A": FACTOR_A, "lora_B": FACTOR_B}


def trained_factors(average: Average, number: int) -> tuple[str, ...]:
    """The endings of the names of what round `number` (from 1) trains.

    B comes first: it begins as 0, and without it no gradient reaches A.
    """
    match average:
        case "frozen-a":
            return (FACTOR_B,)
        case "alternating":
            return (FACTOR_B,) if number % 2 else (FACTOR_A,)
        case _:
            return FACTOR_A, FACTOR_B


def changing_names(model: nn.Module, spec: Model) -> tuple[str, ...]:
    """The tensors that a run changes: trained in some round, or corrected by the coordinator."""
    names = [name for name, _ in model.named_parameters()]
    if spec.trainable == "all":
        return tuple(sorted(names))
    average = spec.lora.average
    endings = (*trained_factors(average, 1), *trained_factors(average, 2))
    if average == "residual":
        endings += (FROZEN,)
    return tuple(sorted(name for name in names if name.endswith(endings)))


def trained_in_round(spec: Model, number: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a model the sites of a round train and send."""
    if spec.trainable == "all":
        return state
    endings = trained_factors(spec.lora.average, number)
    return {name: tensor for name, tensor in state.items() if name.endswith(endings)}


def train_factors_of_round(model: nn.Module, spec: Model, number: int) -> None:
    """Make trainable what round `number` trains, and nothing else of the adapters."""
    endings = trained_factors(spec.lora.average, number)
    frozen = tuple(factor for factor, ending in FACTORS.items() if ending not in endings)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            # PEFT makes an adapter trainable whenever it switches it on again, as after the KL term's
            # reference, but for the tensors named here.
            layer.frozen_peft_weight_names = {ADAPTER: frozen}
            layer.set_adapter(ADAPTER)


def add_adapter(model: nn.Module, spec: Model, seed: int) -> nn.Module:
    """LoRA on all linear layers; A is drawn from the study's seed, so it is the same at every site.

    Raises:
        UserError: `residual` and a layer whose weight is not [out, in].
    """
    config = LoraConfig(
        r=spec.lora.rank, lora_alpha=spec.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config, adapter_name=ADAPTER)
    if spec.lora.average == "residual":
        layers = [layer.get_base_layer() for layer in adapted.modules() if isinstance(layer, LoraLayer)]
        other = sorted({type(layer).__name__ for layer in layers if not isinstance(layer, nn.Linear)})
        if other:
            raise UserError(
                f"model.lora.average = 'residual' corrects weights of the type Linear, but the model has {other[0]}.",
                "Set model.lora.average = 'frozen-a' or 'alternating'.",
            )
    train_factors_of_round(adapted, spec, number=1)
    return adapted
