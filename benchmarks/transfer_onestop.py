"""Warm start against random weights on OneStopEnglish: `ds-train transfer` on stories260K.

The elementary texts, in the order of their names: every eighth is test text (24), the one after it
dev text (24, of which the first 12 are used), the others are target text. Prints the result as
Markdown; with a second argument, writes it there. The runs lie in FOLDER and go on where they were
stopped; settings laid over the recipe follow after `--`.

usage: python benchmarks/transfer_onestop.py FOLDER [RESULT.md] [-- section.key=value ...]
(needs shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
TEXTS = SHARED / "data" / "onestopenglish" / "Texts-SeparatedByReadingLevel" / "Ele-Txt"
NUM_DEV = 12


def write_texts(folder: Path) -> dict[str, int]:
    """train.jsonl, dev.jsonl and test.jsonl; returns the bytes of text in each."""
    parts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number, path in enumerate(sorted(TEXTS.glob("*.txt"))):
        text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
        parts[{0: "test", 1: "dev"}.get(number % 8, "train")].append(text)
    parts["dev"] = parts["dev"][:NUM_DEV]
    for name, texts in parts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: sum(len(text.encode()) for text in texts) for name, texts in parts.items()}


def main() -> None:
    """Make the files, run the recipe, write what it says."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, overrides = sys.argv[1:split], sys.argv[split + 1 :]
    if not arguments:
        sys.exit(__doc__)
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    sizes = write_texts(folder)
    settings = [
        f"output_dir={folder / 'runs'}",
        f"model.name_or_path={SHARED / 'models' / 'stories260K' / 'hf'}",
        f"data.cache_dir={folder / 'cache'}",
        f"data.train.0.path={folder / 'train.jsonl'}",
        f"data.dev.sources.0.path={folder / 'dev.jsonl'}",
        f"data.validation.sources.0.path={folder / 'test.jsonl'}",
    ]
    recipe = Path(__file__).with_suffix(".yaml")
    command = [sys.executable, "-m", "ds_train", "transfer", str(recipe), *settings, *overrides]
    subprocess.run(command, check=True)
    result = (folder / "runs" / "transfer.md").read_text()
    head = (
        f"# Transfer to OneStopEnglish\n\n{date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores: stories260K (pretrained on children's stories) against "
        "random weights of the same architecture, full fine-tuning in fp32, windows of 128 tokens. "
        + ", ".join(f"{name} {size / 1000:.1f} kB" for name, size in sizes.items())
        + " of text. Recipe: `benchmarks/transfer_onestop.yaml`.\n\n"
    )
    print(head + result)
    if len(arguments) > 1:
        target = Path(arguments[1])
        target.write_text(head + result)
        picture = folder / "runs" / "transfer.png"
        if picture.is_file():
            shutil.copyfile(picture, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
