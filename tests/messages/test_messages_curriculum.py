"""Messages about curricula and mixtures, word for word, as `ds-train validate` says them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.cli import main

GOOD = """\
output_dir: run
model: {name_or_path: org/model}
data:
  train:
  - {path: org/a, name: a}
  - {path: org/b}
  packing: false
curriculum: {metric: length, pacing: {type: linear}}
train: {max_steps: 100}
cluster: {processes_per_node: 2}
"""
TWO = "data.mixture={stages: [{until: 0.5, weights: {a: 1}}, {weights: {a: 1, b: 1}}]}"

REFRESH = ["curriculum.metric=loss", "curriculum.refresh_at=[0.25, 0.5]"]

# overrides -> the message
CASES: list[tuple[list[str], str]] = [
    (
        ["curriculum.order=hard"],
        'curriculum.order = "hard": must be one of easy_to_hard, hard_to_easy, '
        "random_pool, uniform (on the command line).",
    ),
    (
        ["curriculum.pacing.type=sqrt"],
        'curriculum.pacing.type = "sqrt": must be one of linear, root, wu_root, quad, exp, '
        "log, step, discrete (on the command line).",
    ),
    (
        ["curriculum.pacing.start=0"],
        "curriculum.pacing.start = 0: must be more than 0 (on the command line).",
    ),
    (
        ["curriculum.pacing.end=1.5"],
        "curriculum.pacing.end = 1.5: must be at most 1 (on the command line).",
    ),
    (
        ["curriculum.pacing.end_at=0"],
        "curriculum.pacing.end_at = 0: must be a share of the run, more than 0 and at most "
        "1, or a length such as '500 steps' or '2M tokens' (on the command line).",
    ),
    (
        ["curriculum.pacing.end_at=200"],
        "curriculum.pacing.end_at = 200: must be a share of the run, more than 0 and at "
        "most 1, or a length such as '500 steps' or '2M tokens' (on the command line).",
    ),
    (
        ["curriculum.pacing.end_at=200 steps"],
        'curriculum.pacing.end_at = "200 steps": lies after the end of the run, which '
        "train.max_steps = 100 sets; make one of them fit.",
    ),
    (
        ["curriculum.pacing={type: discrete}"],
        "curriculum.pacing: levels is empty; type: discrete needs some, e.g. [0.3, 0.6, "
        "1.0] (given: type) (on the command line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 1.0], at: []}"],
        "curriculum.pacing: at says where the second of the levels and each one after it "
        "begin, so 2 levels and 0 in at do not fit (given: levels, at) (on the command "
        "line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 0.0], at: [0.5]}"],
        "curriculum.pacing.levels[1] = 0.0: must be more than 0 (on the command line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 0.5, 1.0], at: [0.5, 0.4]}"],
        "curriculum.pacing: at must rise, and 0.4 does not come after 0.5 (given: at) (on "
        "the command line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 0.5, 1.0], at: [0.5, 90 steps]}"],
        "curriculum.pacing: at mixes shares of the run and steps (0.5, 90 steps); use one "
        "(given: at) (on the command line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 1.0], at: [1.0]}"],
        "curriculum.pacing: at 1.0 the run ends, so the last of the levels would never be "
        "drawn (given: levels, at) (on the command line).",
    ),
    (
        ["curriculum.pacing={type: discrete, levels: [0.2, 1.0], at: [101 steps]}"],
        'curriculum.pacing.at[0] = "101 steps": lies after the end of the run, which '
        "train.max_steps = 100 sets; make one of them fit.",
    ),
    (
        ["curriculum.pacing.levels=[0.2]"],
        "curriculum.pacing: levels and at are for type: discrete; set it, or remove them "
        "(given: type, levels) (my.yaml, line 8).",
    ),
    (
        ["curriculum.pacing.p=3"],
        "curriculum.pacing: p is for type: root, not for linear; remove it (given: type, "
        "p) (my.yaml, line 8).",
    ),
    (
        ["curriculum.unit=tokens"],
        "curriculum.unit = tokens: the run's length is given by train.max_steps, so its "
        "progress is known in steps; give train.max_tokens instead, or remove "
        "curriculum.unit.",
    ),
    (
        ["curriculum.metric=perplexity"],
        "curriculum: metric perplexity wants metric_model, the model that measures it "
        "(given: metric) (my.yaml, line 8).",
    ),
    (
        ["curriculum.metric_model=org/model"],
        "curriculum: metric_model is for the metrics perplexity and ifd; remove it (given: "
        "metric_model) (my.yaml, line 8).",
    ),
    (
        ["curriculum.refresh_at=[0.5]"],
        "curriculum: refresh_at is for metric: loss; other difficulties stay as they are "
        "(given: metric, refresh_at) (my.yaml, line 8).",
    ),
    (
        ["curriculum.metric=loss", "curriculum.refresh_at=[0.5, 0.2]"],
        "curriculum: refresh_at must rise (given: refresh_at) (my.yaml, line 8).",
    ),
    (
        ["curriculum.metric=loss", "curriculum.refresh_at=[0, 0.5]"],
        "curriculum.refresh_at[0] = 0: must be more than 0 (on the command line).",
    ),
    (
        [*REFRESH, "train.max_steps=null", "train.max_tokens=1M"],
        "curriculum.refresh_at = [0.25, 0.5]: the samples drawn after that are not known before, "
        "so that under train.max_tokens nobody could tell how many steps the run has; give "
        "train.max_steps instead.",
    ),
    (
        [*REFRESH, "train.max_steps=2"],
        "curriculum.refresh_at = [0.25, 0.5]: of 2 steps these are the ones after 1, 1, and each "
        "has to be another one, before the last; give shares that lie further apart, or more "
        "steps.",
    ),
    (
        [*REFRESH, "train.warmup_steps=10k tokens"],
        'curriculum.refresh_at with train.warmup_steps = "10_000 tokens": how many steps that is '
        "may depend on samples that are not known before; give it in steps, or as a share.",
    ),
    (
        [*REFRESH, "curriculum.cover=true"],
        "curriculum.refresh_at with curriculum.cover = true: an epoch can't be covered in two "
        "orders; set cover: false.",
    ),
    (
        [*REFRESH, TWO, "data.mixture.max_epochs={a: 2}"],
        "curriculum.refresh_at with data.mixture.max_epochs: whether a source runs out is not "
        "known before the run; set on_exhausted: repeat, or remove max_epochs.",
    ),
    (
        ["curriculum.cover=true", "curriculum.window=64"],
        "curriculum: window shows each sample once an epoch by itself; remove cover "
        "(given: cover, window) (my.yaml, line 8).",
    ),
    (
        ["curriculum.cover=true", "curriculum.pacing.start=1", "curriculum.pacing.end=0.5"],
        "curriculum.cover = true with a pool that shrinks: what leaves the pool could not "
        "be shown once an epoch; set cover: false, or a pacing that rises.",
    ),
    (
        ["curriculum.tempo=3"],
        "curriculum.tempo: no such setting. In curriculum there are: metric, "
        "metric_model, normalise, order, pacing, then, unit, cover, stratify_by, window, "
        "seq_len, refresh_at (on the command line).",
    ),
    (
        ["data.shuffle=false"],
        "data.shuffle = false with curriculum: it draws at random within what it lets in; "
        "remove one of them.",
    ),
    (
        ["data.train.1.weight=2"],
        "data.train[1].weight = 2 with curriculum: passes in an epoch have no meaning "
        "there; give shares of the tokens in data.mixture instead, e.g. stages: [{weights: "
        "{b: 0.5, ...}}].",
    ),
    (
        ["data.mixture={}"],
        "data.mixture: give either stages or temperature (given: none) (on the command line).",
    ),
    (
        ["data.mixture={temperature: 2, stages: [{weights: {a: 1, b: 1}}]}"],
        "data.mixture: give either stages or temperature (given: temperature, stages) (on "
        "the command line).",
    ),
    (
        ["data.mixture={stages: [{weights: {a: 0, b: 0}}]}"],
        "data.mixture.stages[0]: weights sum to 0, so that nothing would be drawn; raise "
        "one of them (given: weights) (on the command line).",
    ),
    (
        ["data.mixture={stages: [{weights: {a: 1, b: -1}}]}"],
        "data.mixture.stages[0].weights.b = -1: must be at least 0 (on the command line).",
    ),
    (
        ["data.mixture={stages: [{weights: {a: 1, c: 1}}]}"],
        "2 faults:\n"
        "  data.mixture.stages[0].weights.c: there is no such source; data.train has a, b "
        "(a source's name is its name, or the last part of its path).\n"
        "  data.mixture: no stage gives b a weight, so nothing of it would be drawn; "
        "remove the source, or give it a weight.",
    ),
    (
        ["data.mixture={stages: [{weights: {a: 1}}]}"],
        "data.mixture: no stage gives b a weight, so nothing of it would be drawn; remove "
        "the source, or give it a weight.",
    ),
    (
        ["data.mixture={stages: [{until: 0.8, weights: {a: 1, b: 1}}]}"],
        "data.mixture: stages end at 0.8, and nothing says what comes after it; the last "
        "one wants until: 1.0, or none (given: stages) (on the command line).",
    ),
    (
        ["data.mixture={stages: [{weights: {a: 1}}, {weights: {b: 1}}]}"],
        "data.mixture: each of the stages but the last wants until (given: stages) (on the "
        "command line).",
    ),
    (
        ["data.mixture={stages: [{until: 0.8, weights: {a: 1}}, {until: 0.5, weights: {b: 1}}]}"],
        "data.mixture: stages: until must rise, and 0.5 does not come after 0.8 (given: "
        "stages) (on the command line).",
    ),
    (
        ["data.mixture={stages: [{until: 1.0, weights: {a: 1}}, {weights: {b: 1}}]}"],
        "data.mixture: stages after the end: one of them begins where the run ends (given: "
        "stages) (on the command line).",
    ),
    (
        ["data.mixture={stages: [{until: 300 steps, weights: {a: 1}}, {weights: {b: 1}}]}"],
        'data.mixture.stages[0].until = "300 steps": lies after the end of the run, which '
        "train.max_steps = 100 sets; make one of them fit.",
    ),
    (
        [TWO, "data.mixture.max_epochs={c: 2}"],
        "data.mixture.max_epochs.c: there is no such source; data.train has a, b (a "
        "source's name is its name, or the last part of its path).",
    ),
    (
        [TWO, "data.train.1.name=a"],
        "2 faults:\n"
        "  data.mixture: 2 sources are called a; give each a name of its own.\n"
        "  data.mixture.stages[1].weights.b: there is no such source; data.train has a, a "
        "(a source's name is its name, or the last part of its path).",
    ),
    (
        [TWO, "curriculum.cover=true"],
        "curriculum.cover = true with data.mixture: the mixture decides how often each "
        "source is passed; set cover: false.",
    ),
    (
        [TWO, "curriculum.window=64"],
        "curriculum.window with data.mixture: windows are those of a shuffled epoch, which "
        "a mixture does not have; remove one of them.",
    ),
    (
        [TWO, "curriculum.stratify_by=source"],
        "curriculum.stratify_by = source with data.mixture: the pool of a mixture is each "
        "source's own already; remove stratify_by.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), CASES, ids=lambda value: str(value)[:60])
def test_message(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("my.yaml").write_text(GOOD)
    assert main(["validate", "my.yaml", *overrides]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]
