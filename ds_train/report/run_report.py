"""`ds-train report RUN`: what a run came to, and what befell it, as report.md and loss.png.

From the files of the run folder alone, also while it goes on. The curve is that of metrics.jsonl,
where every step stands once; what was undone is drawn beside it and counted as lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_train.errors import ConfigError, quoted
from ds_train.paths import RunPaths, replace_text
from ds_train.report.incidents import Incident, find_incidents
from ds_train.report.markdown import as_table
from ds_train.report.plot import RunCurves, plot_run
from ds_train.report.progress import evaluation_line
from ds_train.report.record import EvaluationRecord, Record, StepRecord, read_records
from ds_train.report.run_figure import Points, names_of
from ds_train.report.traffic import Summary
from ds_train.report.undone import Undone, read_undone
from ds_train.units import format_seconds

_WHAT = {
    "rollback": "rolled back",
    "restart": "restarted by itself",
    "by hand": "started again by hand or scheduler",
    "failure": "failed",
}


def report_command(run: str) -> int:
    """Write the report of the run in a folder, and print it. Returns the exit code 0.

    Raises:
        ConfigError: the folder has no records of a run; CheckpointError: they can't be read.
    """
    paths = RunPaths(Path(run))
    if not paths.metrics.is_file():
        raise ConfigError(
            f"{quoted(run)} has no {paths.metrics.name}, so no step of a run was made there. Give "
            "the output_dir of a run."
        )
    records, undone = read_records(paths.metrics), read_undone(paths)
    incidents = find_incidents(paths, records, undone)
    curves = curves_of(records, undone, incidents)
    picture = plot_run(paths.loss_curve, curves, title=paths.root.name)
    text = markdown(paths.root.name, records, incidents, None if picture is None else picture.name)
    replace_text(paths.report, text)
    print(text)
    files = [paths.report, *([] if picture is None else [picture])]
    print("written: " + ", ".join(str(path) for path in files))
    return 0


def curves_of(
    records: Sequence[Record], undone: Sequence[Undone], incidents: Sequence[Incident]
) -> RunCurves:
    """What is drawn. Each undone stretch begins at the step that was gone back to."""
    steps = [one for one in records if isinstance(one, StepRecord)]
    losses = {one.step: one.loss for one in steps}
    stretches: list[Points] = []
    for stretch in undone:
        begin = stretch.from_step
        before = [(begin, losses[begin])] if begin in losses else []
        stretches.append([*before, *((one.step, one.loss) for one in stretch.steps)])
    held_out = [(one.step, one.loss) for one in records if isinstance(one, EvaluationRecord)]
    by_example = any(one.language_modelling is not None for one in steps)
    unit = "mean over the examples" if by_example else "nats per token"
    return RunCurves(list(losses.items()), held_out, stretches, incidents, unit)


def markdown(
    name: str, records: Sequence[Record], incidents: Sequence[Incident], picture: str | None
) -> str:
    """The report as text; `picture`: its file, None where there is none."""
    lines = [f"# Run {name}", "", *_facts(records), ""]
    if picture is not None:
        lines += [f"![losses over steps]({picture})", ""]
    lines += ["## Interruptions", "", *_interruptions(incidents)]
    return "\n".join(lines) + "\n"


def _facts(records: Sequence[Record]) -> Iterator[str]:
    """How far it came, what it was measured at, and what communication was."""
    steps = [one for one in records if isinstance(one, StepRecord)]
    if not steps:
        yield "No step has been made."
    else:
        seconds = format_seconds(sum(one.seconds for one in steps))
        first, last = steps[0], steps[-1]
        yield (
            f"- step {last.step:,} reached: {len(steps):,} steps with {last.total_tokens:,} "
            f"tokens count, in {seconds}"
        )
        begin = f"{first.loss:.4f} in step {first.step:,}"
        yield f"- loss {begin}, {last.loss:.4f} in step {last.step:,}"
    evaluations = [one for one in records if isinstance(one, EvaluationRecord)]
    best = [one for one in evaluations if one.best]
    for one in dict.fromkeys([*best[-1:], *evaluations[-1:]]):
        yield f"- {evaluation_line(one)}"
    summary = Summary()
    for record in records:
        summary.add(record)
    if (line := summary.line()) is not None:
        yield f"- {line}"


def _interruptions(incidents: Sequence[Incident]) -> Iterator[str]:
    if not incidents:
        yield "None: every step was made once."
        return
    head = ["", "what", "when", "cause", "went on from", "lost", "left out since"]
    named = zip(names_of(incidents), incidents, strict=True)
    yield from as_table(head, [_row(name, one) for name, one in named])
    steps = sum(one.num_lost for one in incidents)
    seconds = format_seconds(sum(one.seconds_lost for one in incidents))
    yield ""
    yield (
        f"Lost in all: {steps:,} steps; {seconds} in those that had been recorded (one that "
        "diverged is not), without the time of starting anew. In the picture the thick line is the "
        "run: of each step the time that counts, as in `metrics.jsonl`. What was undone is dashed "
        "and grey, and stands in `undone.jsonl`."
    )
    if any(one.num_samples for one in incidents):
        yield ""
        yield "Samples that are left out, by id and by row of their source: `quarantine.json`."


def _row(name: str, one: Incident) -> list[str]:
    return [
        name,
        _WHAT[one.kind],
        f"{'in' if one.kind == 'rollback' else 'after'} step {one.step:,}",
        one.cause.replace("|", "\\|"),
        _origin(one),
        _lost(one),
        f"{one.num_samples:,} samples" if one.num_samples else "",
    ]


def _origin(one: Incident) -> str:
    if one.from_step is None:
        return ""
    where = "the start" if one.from_step == 0 else f"`step-{one.from_step:08d}`"
    return f"{where}, {one.went_on}" if one.went_on else where


def _lost(one: Incident) -> str:
    """`steps 4 to 6`; of a rollback the last one had diverged."""
    if one.from_step is None or one.num_lost == 0:
        return "nothing"
    first = one.from_step + 1
    text = f"step {first:,}" if first == one.step else f"steps {first:,} to {one.step:,}"
    return f"{text} ({one.num_lost:,})"
