"""DeepSpeed's ZeRO under the same loop of steps: each process holds a part of optimiser state, gradients and weights.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv 1910.02054).
DeepSpeed keeps float32 masters of bfloat16 weights itself. State is written whole, in the layout of one process, so a
run may go on with another number of processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.grpo.logps import completion_logps
from common.grpo.ranks import rank, world
from common.grpo.stepping import RESIDUAL
from common.study import Grpo, PrefixRoute

MOMENTS = ("exp_avg", "exp_avg_sq")


class Scorer(nn.Module):
    """The learning pass as one module: an engine prepares and ends a pass at the module it holds."""

    def __init__(self, model: nn.Module, temperature: float, route: PrefixRoute) -> None:
        super().__init__()
        self.model, self.temperature, self.route = model, temperature, route

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_length: int) -> tuple[Tensor, Tensor]:
        return completion_logps(self.model, input_ids, attention_mask, completion_length, self.temperature, self.route)


class ZeroSteps:
    """AdamW steps on a model that DeepSpeed shares out. Made on every process, once in its life.

    Args:
        accelerator: configured for DeepSpeed by the launcher.
        scorer: what learns, in place on this process's device.
        parameters: of the model that are trained, by name.
        kept: moments, step counts and residuals as `state` gave them; empty at the start of a run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        scorer: Scorer,
        parameters: dict[str, nn.Parameter],
        grpo: Grpo,
        kept: dict[str, Tensor],
    ) -> None:
        self.parameters = parameters
        self.dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
        starts = {n: p.detach().float() + kept[RESIDUAL + n].to(p.device) for n, p in parameters.items()
                  if RESIDUAL + n in kept}  # fmt: skip
        plugin = accelerator.state.deepspeed_plugin
        self.stage = plugin.zero_stage
        plugin.deepspeed_config["gradient_clipping"] = grpo.max_grad_norm
        optimizer = torch.optim.AdamW(parameters.values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)
        self.engine, self.optimizer = accelerator.prepare(scorer, optimizer)
        self.inner = self.optimizer.optimizer.optimizer
        if kept:
            self.restore(kept, starts)

    def restore(self, kept: dict[str, Tensor], starts: dict[str, Tensor]) -> None:
        shared = self.optimizer.optimizer
        count = kept[f"step/{next(iter(self.parameters))}"]
        # AdamW makes its state in its first step, which is still to come.
        for part in shared.fp32_partitioned_groups_flat if self.stage == 3 else shared.single_partition_of_fp32_groups:
            self.inner.state[part] = {"step": count.clone(), **{moment: torch.zeros_like(part) for moment in MOMENTS}}
        if self.stage != 3:
            shared._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                self.put(parameter, kept[f"{moment}/{name}"].float(), moment)
            if name in starts:
                self.put(parameter, starts[name], None)

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

    def step(self) -> None:
        """Nothing: DeepSpeed averages, clips and steps at the end of the backward pass."""

    def state(self) -> dict[str, Tensor]:
        """Moments, step counts and what the weights lack of their float32 masters, whole, on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        count = next(iter(self.inner.state.values()))["step"]
        out = {}
        for name, parameter in self.parameters.items():
            out[f"step/{name}"] = torch.as_tensor(count).detach().float().cpu().clone()
            for moment in MOMENTS:
                out[f"{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment).cpu()
            if self.dtypes[name] == torch.bfloat16:
                master = safe_get_full_fp32_param(parameter)
                out[RESIDUAL + name] = (master - master.bfloat16().float()).cpu()
        return out

    def trained(self) -> dict[str, Tensor]:
        """The trained tensors, whole, on the CPU, in the types that they had."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p).to(self.dtypes[n]).cpu() for n, p in self.parameters.items()}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every weight on every process, to generate: token by token it would be fetched anew each time."""
        if self.stage != 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters
        from trl.models.utils import add_hooks, remove_hooks

        with GatheredParameters(list(self.engine.parameters())):
            remove_hooks(self.engine)
            yield
            add_hooks(self.engine)
