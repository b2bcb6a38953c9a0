"""The whole recipe: every section, frozen, with its defaults filled in."""

from __future__ import annotations

from ds_train.config.adapter import AdapterConfig
from ds_train.config.base import Section, UserPath
from ds_train.config.checkpoint import CheckpointConfig
from ds_train.config.cluster import ClusterConfig
from ds_train.config.compare import CompareConfig
from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.data import DataConfig
from ds_train.config.engine import EngineConfig
from ds_train.config.evaluate import EvaluateConfig
from ds_train.config.fewshot import FewshotConfig
from ds_train.config.model import ModelConfig
from ds_train.config.report import ReportConfig
from ds_train.config.train import TrainConfig
from ds_train.config.transfer import TransferConfig


class RunConfig(Section):
    """One run: a recipe with its overrides applied."""

    output_dir: UserPath
    """Folder of the run: recipe, DeepSpeed config, audit, metrics, checkpoints."""

    model: ModelConfig
    """Which checkpoint is trained."""

    adapter: AdapterConfig = AdapterConfig()
    """Which parameters train."""

    data: DataConfig
    """What it is trained on."""

    curriculum: CurriculumConfig | None = None
    """In which order."""

    fewshot: FewshotConfig | None = None
    """From how few examples."""

    train: TrainConfig
    """How long, how fast."""

    engine: EngineConfig = EngineConfig(preset="zero2")
    """How DeepSpeed shards it."""

    evaluate: EvaluateConfig = EvaluateConfig()
    """When it is measured."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """When it is saved."""

    report: ReportConfig = ReportConfig()
    """What is shown."""

    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    transfer: TransferConfig | None = None
    """What `ds-train transfer` measures."""

    compare: CompareConfig | None = None
    """Which variants of this recipe `ds-train compare` trains side by side."""

    @property
    def held_out_tasks(self) -> list[str]:
        """Sources that are only evaluated on (`fewshot.episodes.held_out`)."""
        fewshot = self.fewshot
        return [] if fewshot is None or fewshot.episodes is None else fewshot.episodes.held_out
