"""Detectors of OpenPCDet's that are pruned when they are built and distilled while they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pcdet.models.detectors import CenterPoint, SECONDNet
from torch import Tensor

from cakdp_ext.checkpoint import PLAN_KEY, CheckpointError, load_weights, pack_plan, read_checkpoint, unpack_plan
from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.contract import EncodedScene
from cakdp_ext.openpcdet.batches import to_batch, with_targets
from cakdp_ext.openpcdet.center_heads import assign_by_part
from cakdp_ext.openpcdet.dense import has_iou_branch, home_of, is_center_head
from cakdp_ext.openpcdet.faces import DetectorFaces
from cakdp_ext.openpcdet.refined import refine_batch
from cakdp_ext.openpcdet.shown import taps_of
from cakdp_ext.openpcdet.taught import Distillation, watching
from cakdp_ext.pruning import (
    PruningConfig,
    cut_student_,
    inherit_weights,
    load_plan,
    narrow_,
    plan_from_dict,
    plan_to_dict,
    read_width,
    require_width,
)
from cakdp_ext.refinement import IoURefinement
from cakdp_ext.taps import Taps
from cakdp_ext.types import Batch, PruningPlan

_CURE = "use the YAML it was trained with"


class CaKDPStudent(DetectorFaces):
    """Mixin in front of a one-stage class of OpenPCDet's that obeys ``MODEL.WIDTH``, ``PRUNING`` and ``DISTILL``.

    The plan is applied when the detector is built, so that OpenPCDet's optimizer, loops and logs see a plain, smaller
    network. Checkpoints carry it. The teacher is no submodule: it is in no checkpoint, no optimizer, no broadcast. The
    projectors of a method that has some are a submodule, ``projectors``, which is in no state dict.

    Args:
        model_cfg: MODEL's mapping; never changed.
        num_class: number of classes.
        dataset: of OpenPCDet's; ``dataset.training`` says whether weights are inherited and a teacher is needed.

    Attributes:
        is_student: tells it from OpenPCDet's own detectors, which pass over our sections of MODEL.
        has_centers: whether it reads a CenterHead; else an AnchorHeadSingle.
        width: MODEL.WIDTH, which it was built with; None at full width.

    Raises:
        ConfigError: where MODEL cannot be used, or the teacher cannot teach this student.
        CheckpointError: where weights do not fit.
    """

    is_student: ClassVar[bool] = True
    has_centers: ClassVar[bool]
    _plan: PruningPlan | None = None
    _distillation: Distillation | None = None
    _scene: Batch | None = None
    _seen: Mapping[str, Any] | None = None
    _encoded: EncodedScene | None = None
    _refused: CheckpointError | None = None
    _file_plan: Mapping[str, Any] | None = None

    def __init__(self, model_cfg: Any, num_class: int, dataset: Any) -> None:
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)  # type: ignore[call-arg]
        self._check_head()
        post_processing = model_cfg.get("POST_PROCESSING", {})
        self.iou_refinement = from_node(
            IoURefinement, post_processing.get("IOU_REFINEMENT"), "MODEL.POST_PROCESSING.IOU_REFINEMENT"
        )
        if post_processing.get("IOU_REFINEMENT"):
            self.iou_refinement.require_branch(has_iou_branch(self.dense_head), type(self.dense_head).__name__)
        self.width = read_width(model_cfg)
        if self.width is not None:
            self.to(home_of(self.dense_head))  # type: ignore[attr-defined]
            narrow_(self, self.width, self.geometry)  # type: ignore[arg-type]
        self._prune(model_cfg.get("PRUNING"), dataset)
        if model_cfg.get("DISTILL") and dataset.training:
            with torch.random.fork_rng():  # every method sees the frames in the order of a training without a teacher
                self._distil(model_cfg, dataset)

    def _distil(self, model_cfg: Any, dataset: Any) -> None:
        self._distillation = Distillation.of(model_cfg["DISTILL"], dataset)
        pruning = model_cfg.get("PRUNING")
        if not pruning or pruning.get("INITIAL_WEIGHTS") == "random":
            self._distillation.start(self)
        self._distillation.prepare(self)

    def _check_head(self) -> None:
        """Refuse a head of the other kind, which would train and, when all is done, give nothing to post-processing."""
        if is_center_head(self.dense_head) != self.has_centers:
            kind, other = (
                ("CenterHead", "SECONDNetCaKDP") if self.has_centers else ("AnchorHeadSingle", "CenterPointCaKDP")
            )
            raise ConfigError(
                f"{type(self).__name__} cannot read {type(self.dense_head).__name__}; use {kind} or {kind}IoU, or "
                f"MODEL.NAME: {other}"
            )

    def _prune(self, node: Mapping[str, Any] | None, dataset: Any) -> None:
        if not node:
            return
        pruning = from_node(PruningConfig, node, "MODEL.PRUNING")
        if pruning.plan:
            if dataset.training:
                inherit_weights(self, pruning)  # type: ignore[arg-type]
            try:
                self._cut(load_plan(pruning.plan))
            except ValueError as error:
                raise ConfigError(f"MODEL.PRUNING.PLAN {pruning.plan}: {error}") from error
        elif dataset.training:
            raise ConfigError(
                "MODEL.PRUNING has no PLAN, and training needs it before the optimizer is built; run "
                "tools/score_filters.py and tools/prune.py, then set MODEL.PRUNING.PLAN to the plan.json they leave"
            )

    def _cut(self, plan: PruningPlan) -> None:
        self.to(home_of(self.dense_head))  # type: ignore[attr-defined]
        cut_student_(self, plan, self.geometry)  # type: ignore[arg-type]
        self._plan = plan

    def _apply(self, change: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move or cast the network, and the teacher along with it."""
        if self._distillation is not None:
            self._distillation.teacher.follow(change)
        return super()._apply(change, *args, **kwargs)  # type: ignore[misc]

    def forward(self, batch: Any) -> Any:
        """Detect, or train and be taught; see :class:`DetectorFaces`.

        Raises:
            CheckpointError: in training, where a checkpoint to resume from was refused before.
        """
        if self.training and self._refused is not None:
            raise self._refused
        if not self.training or self._distillation is None:
            return super().forward(batch)
        scene, distiller = batch if isinstance(batch, Batch) else to_batch(batch), self._distillation.distiller
        try:
            self._scene, self._encoded = scene, distiller.look(scene)
            batch = with_targets(batch, scene, distiller.targets(scene, self._encoded, self.sites))
            with watching(self.dense_head) as self._seen:
                return super().forward(batch)
        finally:
            self._scene = self._seen = self._encoded = None

    def get_training_loss(self) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """Give the task loss and, under a teacher, Eq. 7 with what it is made of."""
        if self._scene is None or self._distillation is None:
            return super().get_training_loss()  # type: ignore[misc]
        shown = self._shown(self._distillation)
        loss, logged, messages = super().get_training_loss()  # type: ignore[misc]
        taught = self._distillation.distiller(self._scene, shown, self._encoded)
        losses = {"distill_loss": taught.loss, **taught.losses}
        logged = {**logged, **{name: value.item() for name, value in losses.items()}}
        if taught.num_representatives is not None:
            logged["num_representatives"] = taught.num_representatives.float().mean().item()
        return loss + taught.loss, logged, messages

    def _shown(self, distillation: Distillation) -> Taps:
        """Take what the methods ask for out of this forward; before targets' losses change what the head keeps."""
        maps = self.dense_head.forward_ret_dict
        return taps_of(self, self._seen or {}, maps, distillation.distiller.shown)

    def post_processing(self, batch_dict: dict[str, Any]) -> Any:
        """Apply the IoU branch, then OpenPCDet's score threshold, NMS and recall."""
        return super().post_processing(refine_batch(batch_dict, self.iou_refinement))  # type: ignore[misc]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Put the plan among the tensors where the network was pruned, whoever asks for them: it, DDP, an average."""
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        if self._plan is not None:
            destination[prefix + PLAN_KEY] = pack_plan(plan_to_dict(self._plan))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take tensors of a network that was cut by the same plan, or of one that was not cut, like this one.

        Raises:
            CheckpointError: for another plan.
        """
        self._require_plan(unpack_plan(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]

    def _load_state_dict(
        self, model_state_disk: Mapping[str, Tensor], *, strict: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Load what OpenPCDet read from a checkpoint: every tensor must fit, whichever way it asks."""
        tensors = dict(model_state_disk)
        packed = unpack_plan(tensors) or self._file_plan
        self._cut_like(packed)
        self._require_plan(packed)
        if packed is not None:
            tensors[PLAN_KEY] = pack_plan(packed)
        load_weights(self, tensors, "the checkpoint")  # type: ignore[arg-type]
        return dict(self.state_dict()), tensors  # type: ignore[attr-defined]

    def _cut_like(self, packed: Mapping[str, Any] | None) -> None:
        """Cut a network that is only tested as the checkpoint was; one that trains was cut when it was built."""
        if self._plan is not None or self.dataset.training:
            return
        if self.model_cfg.get("PRUNING") and packed is None:
            raise CheckpointError(f"it is not pruned, but the YAML has MODEL.PRUNING; {_CURE}")
        if packed is not None and self.model_cfg.get("PRUNING"):
            self._cut(plan_from_dict(packed))

    def load_params_from_file(self, filename: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint for testing, or weights to start from; cuts the network first as the checkpoint says.

        Raises:
            CheckpointError: naming file and tensor, where it is of another model, plan or shape.
        """
        return self._naming(filename, super().load_params_from_file, *args, **kwargs)  # type: ignore[misc]

    def load_params_with_optimizer(self, filename: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint to resume from.

        Raises:
            CheckpointError: naming file and tensor, where it is of another model, plan or shape.
        """
        result = self._naming(filename, super().load_params_with_optimizer, *args, **kwargs)  # type: ignore[misc]
        if self._distillation is not None:
            self._distillation.resume(read_checkpoint(filename), filename)
        return result

    def _naming(self, filename: Any, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Load a file; keep a refusal for the next training step, in case that OpenPCDet's resume swallows it."""
        try:
            content = read_checkpoint(filename)
            require_width(content, self.width, filename)
            self._file_plan = content.get("pruning")
            result = load(filename, *args, **kwargs)
        except Exception as error:
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self._refused = CheckpointError(text if str(filename) in text else f"{filename}: {text}")
            raise self._refused from error
        finally:
            self._file_plan = None
        self._refused = None
        return result

    def _require_plan(self, packed: Mapping[str, Any] | None) -> None:
        theirs = plan_from_dict(packed).keep_indices if packed is not None else None
        ours = self._plan.keep_indices if self._plan is not None else None
        if theirs == ours:
            return
        if theirs is None:
            raise CheckpointError(f"it is not pruned, but this detector was cut by MODEL.PRUNING.PLAN; {_CURE}")
        if ours is None:
            raise CheckpointError(f"it is pruned, but the YAML has no MODEL.PRUNING; {_CURE}")
        raise CheckpointError(f"it was cut by another plan than MODEL.PRUNING.PLAN; {_CURE}, and its plan")


class SECONDNetCaKDP(CaKDPStudent, SECONDNet):
    """SECOND, pruned, distilled and masked."""

    has_centers = False


class CenterPointCaKDP(CaKDPStudent, CenterPoint):
    """CenterPoint, pruned, distilled and masked.

    Its head takes cells out itself, since top-k and NMS happen there, and gives every part the objects as they are.
    """

    has_centers = True

    def __init__(self, model_cfg: Any, num_class: int, dataset: Any) -> None:
        super().__init__(model_cfg=model_cfg, num_class=num_class, dataset=dataset)
        if has_iou_branch(self.dense_head):
            self.dense_head.iou_refinement = self.iou_refinement
        else:
            self.dense_head.assign_targets = partial(assign_by_part, self.dense_head, self.dense_head.assign_targets)
