"""random-LTD and DeepSpeed's own sampler are refused wherever a user may ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config

LTD = {
    "data_efficiency": {
        "enabled": True,
        "data_routing": {"enabled": True, "random_ltd": {"enabled": True}},
    }
}
WHY = (
    "data_efficiency.data_routing: (random-LTD) would be wrong here: DeepSpeed 0.19 cuts a "
    "decoder's attention mask to its top-left corner, whichever tokens stay, so documents in one "
    "row would mix; rotary positions keep their full length beside fewer tokens; and its kernel "
    "needs CUDA. Rows that grow save tokens too: curriculum.seq_len."
)


def fault(config: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve_ds_config(config, batch_arithmetic(config, 1))
    return caught.value.faults


def test_in_overrides(make: Callable[..., RunConfig]) -> None:
    config = make(engine={"preset": "zero2", "overrides": LTD})
    assert fault(config) == [f"engine.overrides.{WHY}"]


def test_in_the_user_s_own_file(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(LTD))
    assert fault(make(engine={"config": str(path)})) == [f"engine.config (ds_config.json).{WHY}"]


def test_the_sampler_names_the_section_and_the_export(make: Callable[..., RunConfig]) -> None:
    sampling: dict[str, Any] = {"data_efficiency": {"data_sampling": {"enabled": True}}}
    assert fault(make(engine={"preset": "zero2", "overrides": sampling})) == [
        "engine.overrides.data_efficiency.data_sampling: would choose other rows than the recipe "
        "says; use section curriculum, or write this block for training of your own with "
        "`ds-train export-curriculum`."
    ]
    both = {"data_efficiency": sampling["data_efficiency"] | LTD["data_efficiency"]}
    assert len(fault(make(engine={"preset": "zero2", "overrides": both}))) == 2


def test_the_reason_still_holds_in_the_installed_deepspeed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mask of the kept tokens is not that of the first ones, and DeepSpeed gives the latter."""
    utils = pytest.importorskip("deepspeed.ops.random_ltd.dropping_utils")

    class Sorting:
        """In place of the CUDA kernel, which only sorts."""

        def token_sort_(self, indices: torch.Tensor, length: int) -> torch.Tensor:
            return indices.sort(dim=-1).values

    monkeypatch.setattr(utils, "random_ltd_module", Sorting())
    # two documents of four tokens in one row
    document = torch.arange(8) // 4
    mask = (document[:, None] == document[None]).tril()[None, None]
    torch.manual_seed(0)
    indices, given = utils.gpt_sample_tokens(4, 8, 1, 1, "cpu", mask)
    kept = indices[0, 0].long()
    right = mask[:, :, kept][:, :, :, kept]
    assert len(set(document[kept].tolist())) == 2  # tokens of both documents stay
    assert not torch.equal(given, right)
