"""The benchmarks of the fused loss run, name every peer, and measure what they say they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from loss_gpu_peers import GPU_PEERS  # noqa: E402
from loss_inputs import Case, Truth, make_inputs, supervised  # noqa: E402
from loss_memory import measured_peaks  # noqa: E402
from loss_peers import CPU_PEERS, EAGER, Peer, Unavailable, eager_loss  # noqa: E402
from loss_rounds import Limits, Run, in_turn, measure  # noqa: E402

CPU = torch.device("cpu")
CASE = Case(96, 24, 700, "fp32", masked=0.5)
ALWAYS_HERE = {"eager", "ds-train", "ds-train chunked", "DeepSpeed tiled"}


def run_quickly(script: str, folder: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark writes in a quick run."""
    output = folder / "result.md"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return output.read_text(), json.loads(output.with_suffix(".json").read_text())


def check_every_peer(text: str, values: dict[str, Any], peers: tuple[Peer, ...]) -> None:
    """In every case each peer has a row, with numbers or with the reason why there are none."""
    assert len(values["cases"]) == 4
    for case in values["cases"]:
        assert {peer.name for peer in peers} <= set(case["runs"])
        for name in ALWAYS_HERE:
            assert case["runs"][name]["reason"] is None
            assert case["runs"][name]["errors"]["loss"] < 0.02
    for peer in peers:
        rows = [line for line in text.splitlines() if line.startswith(f"| {peer.name} |")]
        assert len(rows) == 4
        for row in rows:
            first, *others = [cell.strip() for cell in row.split("|")[2:-1]]
            if first.replace(".", "", 1).isdigit():
                assert float(first) > 0
            else:
                assert first and not any(others)


def test_the_one_on_a_cpu_has_every_peer(tmp_path: Path) -> None:
    text, values = run_quickly("loss_cpu.py", tmp_path, "--dtypes", "bf16", "--rounds", "2")
    check_every_peer(text, values, CPU_PEERS)
    for case in values["cases"]:
        for run in case["runs"].values():
            known = run["memory_bytes"] is not None or run["memory_reason"] or run["reason"]
            assert known, run["peer"]


def test_the_one_for_a_gpu_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    text, values = run_quickly(
        "loss_gpu.py", tmp_path, "--device", "cpu", "--heads", "gemma2-2b-softcap"
    )
    check_every_peer(text, values, GPU_PEERS)
    runs = values["cases"][0]["runs"]
    assert runs["torch options"]["reason"] == "has no soft cap"
    assert runs["GEMMs alone (floor)"]["reason"] is None


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_truth_is_autograds_in_fp64(softcap: float | None) -> None:
    case = replace(CASE, softcap=softcap)
    inputs = make_inputs(case, CPU)
    labels = inputs.labels(case)
    hidden = inputs.hidden.double().requires_grad_()
    weight = inputs.weight.double().requires_grad_()
    logits = hidden @ weight.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    truth = Truth(case, inputs)
    errors = truth.errors(labels, loss.detach(), hidden.grad, weight.grad)
    assert set(errors) == {"loss", "grad_hidden", "grad_weight_labels", "grad_weight_others"}
    assert max(errors.values()) < 1e-10
    assert weight.grad is not None
    wrong = truth.errors(labels, loss.detach() * 1.01, hidden.grad, weight.grad * 0.5)
    assert wrong["loss"] == pytest.approx(0.01)
    assert wrong["grad_weight_labels"] == pytest.approx(0.5)


def test_inputs_are_like_a_trained_models() -> None:
    case = replace(CASE, masked=0.0)
    inputs = make_inputs(case, CPU)
    probabilities = (inputs.hidden @ inputs.weight.t()).softmax(dim=-1)
    assert 0.4 < float(probabilities.amax(dim=-1).mean()) < 0.6
    drawn = probabilities.gather(1, inputs.drawn[:, None]).mean()
    expected = probabilities.square().sum(dim=-1).mean()
    assert float(drawn) == pytest.approx(float(expected), abs=0.1)


@pytest.mark.parametrize("tokens", [64, 96, 1024])
def test_half_of_the_labels_are_masked(tokens: int) -> None:
    assert CASE.num_supervised == 48
    case = replace(CASE, tokens=tokens)
    assert abs(int(supervised(case).sum()) - tokens / 2) <= 16
    assert int(supervised(replace(case, masked=0.0)).sum()) == tokens


def test_each_peer_begins_a_round_in_its_turn() -> None:
    names = ["a", "b", "c"]
    orders = [in_turn(names, number) for number in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(names)


def test_a_ratio_is_of_times_within_a_round() -> None:
    fast = Run("fast", seconds=[1.0, 10.0, None])
    slow = Run("slow", seconds=[2.0, 20.0, 1000.0])
    assert fast.ratio_to(slow) == 2.0
    assert slow.ratio_to(fast) == 0.5


def test_a_peer_that_fails_leaves_its_reason() -> None:
    def missing(*_: Any) -> Any:
        raise Unavailable("not installed")

    def broken(*_: Any) -> Any:
        def loss(*_: Any) -> Any:
            raise RuntimeError("no kernel\nfor this")

        return loss

    peers = (EAGER, Peer("missing", missing, ""), Peer("broken", broken, ""))
    inputs = make_inputs(CASE, CPU)
    runs = measure(peers, CASE, inputs, Truth(CASE, inputs), Limits(2, 60, 60))
    assert len(runs["eager"].measured) == 2
    assert runs["missing"].reason == "not installed"
    assert runs["broken"].reason == "RuntimeError: no kernel"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_of_eager_is_its_logits() -> None:
    case = Case(512, 64, 16384, "fp32")
    (peak,) = measured_peaks(EAGER, [case], timeout_seconds=120)
    assert not isinstance(peak, str), peak
    logits = case.tokens * case.vocab * 4
    # the logits, their log-softmax, and the gradients of both while one is made from the other
    assert 2 * logits < peak[0] < 4.5 * logits


def test_eager_is_torchs_cross_entropy_of_the_sum() -> None:
    inputs = make_inputs(CASE, CPU)
    loss = eager_loss(None)(inputs.hidden, inputs.weight, inputs.labels(CASE))
    errors = Truth(CASE, inputs).errors(inputs.labels(CASE), loss, None, None)
    assert errors["loss"] < 1e-5
