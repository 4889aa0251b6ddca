"""How the learner's weights reach the engines: one interface, three ways.

object_store: rank 0 puts the gathered weights into Ray's object store, every engine maps them. CPU and GPU.
nccl, ipc:    vLLM's own trainer engines broadcast or share GPU memory. Written to vLLM 0.32's API; not run so far, since
              no GPUs were at hand (docs/architecture.md says what has been run).

On the engines' side all three are vLLM weight-transfer engines and follow its protocol:
init_weight_transfer_engine, start_weight_update, update_weights, finish_weight_update.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.monitoring.ray_metrics import timing_sync
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.remote_call import gather

if TYPE_CHECKING:
    import torch

    from actors.learner.deepspeed_engine import DeepSpeedModel
    from actors.learner.group import LearnerGroup

OBJECT_STORE = "object_store"


class ObjectStoreSync:
    """`engines` is the pool's own list. The weights that were sent last are kept, for an engine in a lost one's place."""

    def __init__(self, learner: LearnerGroup, engines: list[Any], replace: Replace = no_replacement):
        self.learner, self.engines, self.replace = learner, engines, replace
        self.sent: tuple[ray.ObjectRef, int] | None = None

    @timing_sync()
    def send(self, version: int) -> ray.ObjectRef:
        weights = self.learner.weights("policy")
        self.sent = (weights, version)

        def retry(i: int, error: Exception) -> ray.ObjectRef:
            self.engines[i] = self.replace(i, error)
            return self.engines[i].load_weights.remote([weights], version)

        asked = [e.load_weights.remote([weights], version) for e in self.engines]
        self.learner.engine_time.during("sync", gather, asked, retry)
        return weights

    def bring_up(self, number: int, error: Exception) -> Any:
        """Another engine in the place of one that is lost, with the weights that it held."""
        engine = self.replace(number, error)
        while self.sent is not None:
            weights, version = self.sent
            try:
                self.learner.engine_time.during("sync", ray.get, engine.load_weights.remote([weights], version))
                break
            except Exception as again:
                engine = self.replace(number, again)
        return engine


class DeviceSync:
    """nccl or ipc: all learner ranks gather, rank 0 drives the engines through vLLM's protocol. A lost engine ends the run,
    which can be resumed: vLLM's group of GPUs cannot take in another one."""

    def __init__(self, backend: str, learner: LearnerGroup, engines: list[Any]):
        self.backend, self.learner, self.engines = backend, learner, engines

    @functools.cached_property
    def meeting(self) -> tuple[str, int]:
        """Where the engines meet the learner. Asked for when it is first needed: rank 0 may still be starting."""
        return ray.get(self.learner.ranks[0].address.remote())

    @timing_sync()
    def send(self, version: int) -> None:
        sent = [r.send_weights.remote("policy", self.backend, self.engines, *self.meeting) for r in self.learner.ranks]
        self.learner.engine_time.during("sync", ray.get, sent)
        self.learner.engine_time.during("sync", ray.get, [e.finish_sync.remote(version) for e in self.engines])

    def bring_up(self, number: int, error: Exception) -> Any:
        raise error


def weight_sync(
    backend: str, learner: LearnerGroup, engines: list[Any], replace: Replace = no_replacement
) -> ObjectStoreSync | DeviceSync:
    """A `WeightSync` which can also bring up another engine in the place of a lost one."""
    if backend == OBJECT_STORE:
        return ObjectStoreSync(learner, engines, replace)
    return DeviceSync(backend, learner, engines)


class EngineClient:
    """vLLM's trainer engines call this: every step goes to all rollout actors at once."""

    def __init__(self, engines: list[Any]):
        self.engines = engines

    def _all(self, method: str, **kwargs: Any) -> None:
        ray.get([e.call_worker.remote(method, **kwargs) for e in self.engines])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offset = init_info.get("rank_offset")
        infos = [
            init_info if offset is None else init_info | {"rank_offset": offset + i} for i in range(len(self.engines))
        ]
        ray.get(
            [
                e.call_worker.remote("init_weight_transfer_engine", init_info=i)
                for e, i in zip(self.engines, infos, strict=True)
            ]
        )

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update")


def trainer_engine(
    backend: str,
    rank: int,
    engines: list[Any],
    address: str,
    port: int,
    model: Callable[[], DeepSpeedModel],
) -> Any:
    """vLLM's trainer side on a learner rank, over weights that ZeRO-3 may shard. `model` gives the current model: every arm
    has another."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class ShardedSource(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [
                ParamMeta(n, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for n, p in model().lm.named_parameters()
            ]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            now = model()
            for name, parameter in now.lm.named_parameters():
                with now.gathered([parameter]):
                    yield name, parameter.detach().clone()

    info = IPCTrainerInitInfo(rank=rank) if backend == "ipc" else NCCLTrainerInitInfo(
        master_address=address, master_port=port, world_size=1 + len(engines), rank=rank
    )  # fmt: skip
    return WeightTransferTrainerFactory.trainer_init(info, client=EngineClient(engines), source=ShardedSource())


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """An array of `LearnerRank.weights` as a tensor on the same memory. That is in Ray's store, and must not be written to."""
    import torch

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it says the same
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def register_object_store_engine() -> None:
    """Register the object_store backend with this process's vLLM: weights arrive as a mapping of name to array."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class Nothing(WeightTransferInitInfo):
        pass

    @dataclass
    class Arrays(WeightTransferUpdateInfo):
        arrays: dict[str, Any]

    class ObjectStoreEngine(WeightTransferEngine[Nothing, Arrays]):
        init_info_cls, update_info_cls = Nothing, Arrays

        def init_transfer_engine(self, init_info: Nothing) -> None:
            """No connection to make: the object store is there."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Arrays) -> None:
            def tensors() -> Iterator[tuple[str, torch.Tensor]]:
                for name, array in update_info.arrays.items():
                    yield name, as_tensor(array).to(self.device)

            self.model.load_weights(tensors())

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            _pack_heads(self.model)

        def shutdown(self) -> None:
            """Nothing is held."""

    if OBJECT_STORE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(OBJECT_STORE, ObjectStoreEngine)


def _pack_heads(model: torch.nn.Module) -> None:
    """On CPU a head multiplies with a packed copy of its weight. One that is tied to the embedding receives no weight of its
    own, so a reload leaves its copy as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
