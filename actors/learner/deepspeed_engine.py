"""One model on one rank of the learner, with all that may be done with it. deepspeed is imported inside functions: they run
after the rank has chosen its accelerator by environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Adam, PairLoss, PerResponse
from rlhf_bench.models.checksum import checksum
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.lora import add_adapters, plain_state_dict, plain_weights
from rlhf_bench.models.packing import MicroBatch, micro_batch
from rlhf_bench.models.settings import LoraSettings
from rlhf_bench.training.objective import loss_sums, weighted_sides
from rlhf_bench.training.roles import Step

ModelName = Literal["policy", "reference", "critic"]

MODEL_HEAD: dict[ModelName, Literal["causal", "scalar"]] = {
    "policy": "causal",
    "reference": "causal",
    "critic": "scalar",
}
PART = 2**22
"""Numbers of a gradient that are taken to 64 bits at a time."""


@dataclass(frozen=True)
class RankSetup:
    """One rank of the learner: what is the same for all of its models."""

    rank: int
    ranks: int
    zero_stage: int
    dtype: str
    device: str
    lora: LoraSettings | None = None

    @property
    def has_master_weights(self) -> bool:
        """Whether DeepSpeed keeps float32 weights, gradients and Adam's moments of its own: sharded by ZeRO, or beside a
        bfloat16 model. Otherwise the optimizer works on the model's own parameters, whose full gradients each rank holds."""
        return self.zero_stage > 0 or self.dtype != "float32"

    def deepspeed_config(self, max_grad_norm: float) -> dict[str, Any]:
        """DeepSpeed's settings. Micro-batches are cut by tokens here, so DeepSpeed counts none of its own. Full gradients are
        clipped here too, by the norm that is reported: DeepSpeed would compute that norm a second time."""
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm if self.has_master_weights else 0.0,
            "zero_optimization": {"stage": self.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": self.dtype == "bfloat16"},
            "steps_per_print": 2**31,
        }


class DeepSpeedModel:
    """A model that learns, wrapped by DeepSpeed; or a frozen one, which is wrapped only where ZeRO-3 shards its weights.

    Methods hold collectives: all ranks call them together, each with its own share of the rows. `plan` lists that share: row
    indices by micro-batch. `idle` counts the forward passes by which this rank has fewer than the rank with the most.
    """

    def __init__(
        self,
        name: ModelName,
        path: str,
        setup: RankSetup,
        seed: int,
        learning_rate: float | None,
        max_grad_norm: float,
        adam: Adam,
    ):
        """Load the weights at `path`. Without a learning rate the model is frozen. With one, and with LoRA, new adapters learn
        in place of the weights."""
        self.name, self.setup, self.max_grad_norm = name, setup, max_grad_norm
        self.trained = learning_rate is not None
        module = load_model(path, MODEL_HEAD[name], setup.dtype, seed)
        self.shape = ModelShape.of(module.lm)
        if self.trained and setup.lora is not None:
            add_adapters(module, setup.lora, seed)
            self.shape = replace(self.shape, lora_rank=setup.lora.rank)
        module.to(setup.device)
        self.wrapped = self.trained or setup.zero_stage == 3
        if self.wrapped:
            self.model = self._wrap(module, learning_rate, adam)
        else:
            self.model = module.eval().requires_grad_(False)

    def _wrap(self, module: Any, learning_rate: float | None, adam: Adam) -> Any:
        import deepspeed

        optimizer = None
        if learning_rate is not None:
            learning = [p for p in module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(
                learning, lr=learning_rate, weight_decay=0.0, betas=adam.betas, eps=adam.epsilon, fused=True
            )
        config = self.setup.deepspeed_config(self.max_grad_norm)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        if hasattr(engine.optimizer, "check_grad_overflow"):  # by default it looks in 16 bits only
            engine.optimizer.check_grad_overflow = True
        return engine

    @property
    def module(self) -> Any:
        """The model with its head, without DeepSpeed's wrapping."""
        return self.model.module if self.wrapped else self.model

    @property
    def lm(self) -> Any:
        """The Hugging Face model."""
        return self.module.lm

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's, which may hold torch's inside."""
        return self.model.optimizer

    def gathered(self, parameters: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
        """Inside this context the parameters are whole on every rank, also where ZeRO-3 shards them."""
        if self.setup.zero_stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters))

    def destroy(self) -> None:
        """Free what DeepSpeed holds."""
        if self.wrapped:
            self.model.destroy()

    def numbers(self, batch: MicroBatch, temperature: float = 1.0) -> Any:
        """One per response token: log-probs of a causal model, values of one with a scalar head."""
        batch = batch.to(self.setup.device)
        return self.model(batch, temperature) if MODEL_HEAD[self.name] == "causal" else self.model(batch)[0]

    @torch.no_grad()
    def measure(
        self, rows: Sequence[Row], plan: list[list[int]], idle: int, temperature: float
    ) -> dict[int, PerResponse]:
        """Log-probs (causal) or values (scalar) per response token: `{row index: one array per response}`."""
        self.model.eval()
        found: dict[int, PerResponse] = {}
        for indices in plan:
            part = [rows[i] for i in indices]
            numbers = self.numbers(micro_batch(part), temperature).float().cpu().numpy()
            ends = np.cumsum([len(response) for row in part for response in row.responses])
            by_response = iter(np.split(numbers, ends[:-1]))
            found |= {i: tuple(next(by_response) for _ in rows[i].responses) for i in indices}
        for _ in range(idle):
            self.model(micro_batch(rows[:1]).to(self.setup.device))
        return found

    def step(self, step: Step, plan: list[list[int]], idle: int, units: int, temperature: float) -> dict[str, float]:
        """One optimizer step over `units` units on all ranks. Sums of the loss and metrics over this rank's share,
        `grad_norm` before clipping, and `skipped`: 1 where the gradient was not finite and the weights stay."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = step.learning_rate
        sums = self._accumulate_gradients(step, plan, idle, units, temperature)
        norm, skipped = self._update()
        return {key: float(value) for key, value in sums.items()} | {"grad_norm": norm, "skipped": float(skipped)}

    def _accumulate_gradients(
        self, step: Step, plan: list[list[int]], idle: int, units: int, temperature: float
    ) -> dict[str, torch.Tensor]:
        """Forward and backward passes; sums of the loss and metrics over this rank's share."""
        sums: dict[str, torch.Tensor] = {}
        batches = [micro_batch([step.rows[i] for i in part]) for part in plan]
        batches += [micro_batch(step.rows[:1], weight=0.0)] * idle
        for i, batch in enumerate(batches):
            self.model.set_gradient_accumulation_boundary(i == len(batches) - 1)
            batch_on_device = batch.to(self.setup.device)
            loss, metrics = loss_sums(step.objective, self.model, batch_on_device, step.settings, temperature)
            # DeepSpeed averages over ranks; × ranks / units makes that the mean over all units everywhere.
            with self._without_reduction_of_one_rank():
                self.model.backward(loss * (batch.weight * self.setup.ranks / units))
            for key, value in {"loss": loss.detach(), **metrics}.items():
                sums[key] = sums.get(key, torch.zeros(())) + batch.weight * value.cpu()
        return sums

    def _without_reduction_of_one_rank(self) -> contextlib.AbstractContextManager[Any]:
        """A single rank has no other to reduce gradients with; DeepSpeed would copy them twice all the same."""
        alone = self.setup.ranks == 1 and self.setup.zero_stage == 0
        return self.model.no_sync() if alone else contextlib.nullcontext()

    def _update(self) -> tuple[float, bool]:
        """Clip the gradients and let the optimizer work. The norm before clipping (NaN where DeepSpeed does not say), and
        whether the step was skipped."""
        norm = self._full_gradient_norm()
        skipped = self._forget_if_not_finite(norm)
        if not skipped:
            if norm is not None and norm > self.max_grad_norm:
                parameters = self.module.parameters()
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, torch.tensor(norm))
            self.model.step()
            skipped = bool(getattr(self.optimizer, "overflow", False))  # ZeRO 1 and 2 check for themselves
        if norm is None:
            norm = self.model.get_global_grad_norm()
        return float("nan") if norm is None else float(norm), skipped

    def _full_gradient_norm(self) -> float | None:
        """None where DeepSpeed holds the gradients, and knows their norm only after its step."""
        if self.setup.has_master_weights:
            return None
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _forget_if_not_finite(self, norm: float | None) -> bool:
        """Drop gradients that are not finite before they reach the weights. All ranks decide alike."""
        if norm is not None and not np.isfinite(norm):
            self.module.zero_grad(set_to_none=True)
            return True
        if self.setup.zero_stage == 3 and self.optimizer.has_overflow():
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.averaged_gradients = {}
            return True
        return False

    def side_gradients(
        self, weight: PairLoss, rows: Sequence[Row], plan: list[list[int]], settings: Any, temperature: float
    ) -> list[float]:
        """‖G⁺‖², ‖G⁻‖² and ⟨G⁺, G⁻⟩ of the weighted sums over all ranks' pairs, see `weighted_sides`."""
        module = self.module.train()
        learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
        sides = torch.zeros(2, learning, device=self.setup.device)
        for indices in plan:
            batch = micro_batch([rows[i] for i in indices]).to(self.setup.device)
            for side, found in zip(sides, weighted_sides(module, batch, weight, settings, temperature), strict=True):
                side += found
        if self.setup.ranks > 1:
            torch.distributed.all_reduce(sides)
        products = torch.zeros(3, dtype=torch.float64, device=self.setup.device)
        for part in sides.split(PART, dim=1):  # in 64 bits all of it would be as large as Adam's moments
            chosen, rejected = part.double()
            products += torch.stack([chosen @ chosen, rejected @ rejected, chosen @ rejected])
        return products.tolist()

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """On rank 0 the full weights by Hugging Face name, adapters merged, bfloat16 as its bits; nothing on other ranks.
        Arrays are the parameters' own memory where nothing had to be gathered or merged."""
        for weight in plain_weights(self.lm):
            with self.gathered(weight.parameters):
                if self.setup.rank == 0:
                    value = weight.value().cpu()
                    if self.setup.zero_stage == 3:  # without a copy it is gone with the gathering
                        value = value.clone()
                    yield weight.name, (value if value.dtype == torch.float32 else value.view(torch.uint16)).numpy()

    def checksums(self) -> dict[str, int]:
        """On rank 0 of every tensor of `weights`, as it is now; nothing on other ranks."""
        found = {}
        for weight in plain_weights(self.lm):
            with self.gathered(weight.parameters):
                if self.setup.rank == 0:
                    found[weight.name] = checksum(weight.value())
        return found

    def save(self, path: str) -> None:
        """Write a Hugging Face folder from rank 0, adapters merged."""
        with self.gathered(list(self.lm.parameters())):
            if self.setup.rank == 0:
                self.lm.save_pretrained(path, state_dict=plain_state_dict(self.lm), safe_serialization=True)
