"""DeepSpeed's ZeRO under the same loop of steps: each process holds a part of optimiser state, gradients and weights.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv 1910.02054).
DeepSpeed keeps float32 masters of bfloat16 weights itself. State is written whole, in the layout of one process, so a
run may go on with another number of processes; but for 8-bit moments, which only the same number can read.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor, nn

from common.grpo.logps import completion_logps
from common.grpo.optimizer import make_optimizer, restore, state_tensors
from common.grpo.ranks import rank, world
from common.grpo.stepping import LAYOUT, RESIDUAL, check_layout
from common.study import Grpo, PrefixRoute

MOMENTS = ("exp_avg", "exp_avg_sq")


@contextmanager
def gathered(accelerator: Accelerator, parameters: list[nn.Parameter], changed: bool = False) -> Iterator[None]:
    """Whole weights on every process meanwhile, where stage 3 shares them out; all processes call it together.

    Args:
        changed: keep what the first process makes of them.
    """
    if stage(accelerator) != 3:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(parameters, modifier_rank=0 if changed else None):
        yield


def stage(accelerator: Accelerator) -> int:
    """Of ZeRO; 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return 0 if plugin is None else plugin.zero_stage


class Scorer(nn.Module):
    """The learning pass as one module: an engine prepares and ends a pass at the module it holds."""

    def __init__(self, model: nn.Module, temperature: float, route: PrefixRoute) -> None:
        super().__init__()
        self.model, self.temperature, self.route = model, temperature, route

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_length: int) -> tuple[Tensor, Tensor]:
        return completion_logps(self.model, input_ids, attention_mask, completion_length, self.temperature, self.route)


def on_first(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """On the first process's CPU what all processes put together one by one; the others let each go."""
    return {name: tensor.cpu() for name, tensor in tensors if rank() == 0}


class Backward(DeepSpeedEngineWrapper):
    """accelerate's, which takes the step with the last backward pass, without the step: gradients are pulled first."""

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)


class ZeroSteps:
    """AdamW steps on a model that DeepSpeed shares out. Made on every process, once in its life.

    Args:
        accelerator: configured for DeepSpeed by the launcher.
        scorer: what learns, in place on this process's device.
        parameters: of the model that are trained, by name.
        kept: moments, step counts and residuals as `state` gave them; empty at the start of a run.
        proximal: FedProx's mu; the pull is toward the weights as they are now.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        scorer: Scorer,
        parameters: dict[str, nn.Parameter],
        grpo: Grpo,
        kept: dict[str, Tensor],
        proximal: float,
    ) -> None:
        self.parameters, self.proximal = parameters, proximal
        self.eight_bit = grpo.optimizer == "paged_adamw_8bit"
        self.dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
        self.accelerator, self.stage = accelerator, stage(accelerator)
        accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = grpo.max_grad_norm
        # DeepSpeed casts all weights to bfloat16, LoRA's float32 factors too.
        cast = {n: p.detach().clone() for n, p in parameters.items()
                if accelerator.mixed_precision == "bf16" and p.dtype == torch.float32}  # fmt: skip
        self.engine, self.optimizer = accelerator.prepare(scorer, make_optimizer(parameters.values(), grpo))
        accelerator.deepspeed_engine_wrapped = Backward(self.engine)
        self.shared = shared = self.optimizer.optimizer
        self.inner = shared.optimizer
        flat = shared.fp32_partitioned_groups_flat if self.stage == 3 else shared.single_partition_of_fp32_groups
        self.masters: list[Tensor] = list(flat)
        """This process's part of the weights in float32, all parameters of it in a row."""
        for name, value in cast.items():
            self.put(parameters[name], value, None)
        # Still the weights themselves: what rounding left of an earlier round is not yet in them.
        self.toward = [master.detach().clone() for master in self.masters] if proximal else []
        if kept:
            self.restore(kept)

    def restore(self, kept: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        if self.eight_bit:
            self.restore_eight_bit(kept)
        else:
            self.restore_moments(kept)
        for name, parameter in self.parameters.items():
            if RESIDUAL + name in kept:
                rounded = safe_get_full_fp32_param(parameter)
                self.put(parameter, rounded + kept[RESIDUAL + name].to(rounded.device), None)

    def restore_eight_bit(self, kept: dict[str, Tensor]) -> None:
        check_layout(kept, [self.stage, world()])
        whole = {name: value for name, value in kept.items() if name != LAYOUT and not name.startswith(RESIDUAL)}
        # Stage 3 names them during a step alone, and bitsandbytes looks there.
        self.inner.param_groups[0]["params"] = self.masters
        restore(self.inner, self.parts(), {name: value.chunk(world())[rank()] for name, value in whole.items()})

    def restore_moments(self, kept: dict[str, Tensor]) -> None:
        count = kept[f"step/{next(iter(self.parameters))}"]
        # AdamW makes its state in its first step, which is still to come.
        for part in self.masters:
            self.inner.state[part] = {"step": count.clone(), **{moment: torch.zeros_like(part) for moment in MOMENTS}}
        if self.stage != 3:
            self.shared._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                self.put(parameter, kept[f"{moment}/{name}"].float(), moment)

    def parts(self) -> dict[str, Tensor]:
        """What the optimiser steps here, by number."""
        return {str(number): master for number, master in enumerate(self.masters)}

    def put(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """This process's part of a moment, or of the float32 master, from the whole."""
        from deepspeed import utils

        if self.stage == 3:
            # DeepSpeed's own way from a whole tensor fails where the processes do not divide its size.
            size = utils.safe_get_local_fp32_param(parameter).numel()
            padded = nn.functional.pad(value.flatten(), (0, size * world() - value.numel()))
            part = padded[size * rank() : size * (rank() + 1)]
            if moment is None:
                utils.safe_set_local_fp32_param(parameter, part)
            else:
                utils.safe_set_local_optimizer_state(parameter, part, moment)
        elif moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def add_pull(self) -> None:
        """`common.grpo.proximal` on this process's part: DeepSpeed has averaged the gradients, and not yet clipped."""
        for group, (master, toward) in enumerate(zip(self.masters, self.toward, strict=True)):
            gradients = self.shared.averaged_gradients[group]
            pull = (self.proximal * (master - toward)).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, pull, strict=True):
                gradient += part.view_as(gradient)

    def step(self) -> None:
        """Take the gradients that the backward pass left: DeepSpeed has averaged them, and clips."""
        if self.proximal:
            self.add_pull()
        self.engine.step()

    def state(self) -> dict[str, Tensor]:
        """Moments, step counts and what the weights lack of their float32 masters, of the first process: whole, on the
        CPU; empty of the others."""
        return on_first(self.eight_bit_moments() if self.eight_bit else self.moments()) | on_first(self.residuals())

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """As one process has them, so that a run may go on with another number of processes."""
        from deepspeed.utils import safe_get_full_optimizer_state

        count = torch.as_tensor(next(iter(self.inner.state.values()))["step"]).detach().float()
        for name, parameter in self.parameters.items():
            yield f"step/{name}", count.clone()
            for moment in MOMENTS:
                yield f"{moment}/{name}", safe_get_full_optimizer_state(parameter, moment)

    def eight_bit_moments(self) -> Iterator[tuple[str, Tensor]]:
        """The processes' parts one after the other: blocks of 256 values lie across parameters."""
        yield LAYOUT, torch.tensor([self.stage, world()])
        for name, value in state_tensors(self.inner, self.parts()).items():
            yield name, self.accelerator.gather(value.flatten().to(self.accelerator.device))

    def residuals(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.parameters.items():
            if self.dtypes[name] == torch.bfloat16:
                master = safe_get_full_fp32_param(parameter)
                yield RESIDUAL + name, master - master.bfloat16().float()

    def trained(self) -> dict[str, Tensor]:
        """The trained tensors in the types that they had, of the first process: whole, on the CPU; else empty."""
        from deepspeed.utils import safe_get_full_fp32_param

        return on_first((n, safe_get_full_fp32_param(p).to(self.dtypes[n])) for n, p in self.parameters.items())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every weight on every process, to generate: token by token it would be fetched anew each time."""
        if self.stage != 3:
            yield
            return
        from trl.models.utils import add_hooks, remove_hooks

        with gathered(self.accelerator, list(self.engine.parameters())):
            remove_hooks(self.engine)
            yield
            add_hooks(self.engine)
