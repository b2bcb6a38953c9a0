"""Demonstrations for the tasks of lm_eval: chosen per document, whole, and never the query itself.

lm_eval draws with one generator that runs through the documents, so that the demonstrations of a
document depend on how many came before it, and it cuts what is too long in the middle of a
demonstration. `TaskShots` takes the place of a loaded task's `fewshot_context` and chooses by
ds_train/fewshot/demonstrations.py instead. With draw = lm_eval the task draws and cuts as ever,
and its contexts are those of the harness, letter for letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ds_train.config.shots import Demonstrations
from ds_train.errors import DataError
from ds_train.fewshot.demonstrations import (
    Chooser,
    Pool,
    Query,
    Vectors,
    drop_from_front,
    make_chooser,
)
from ds_train.fewshot.draws import document_key

Document = Mapping[str, Any]
FindVectors = Callable[["TaskShots"], tuple[Vectors, Mapping[str, Vectors]]]
"""Vectors of a task's pool [num_documents, d], and of each of its documents' inputs [d]."""


class Reader(Protocol):
    """What is asked of a model's adapter: how long a text is in tokens, and how much it reads."""

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        ...

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text, with BOS where the tokenizer puts one."""
        ...


@dataclass
class ShotCounts:
    """What happened to the demonstrations of a task's documents."""

    documents: int = 0
    shortened: int = 0
    """documents that lost demonstrations, as the context was too long"""
    dropped: int = 0
    """demonstrations that they lost"""
    too_long: int = 0
    """documents that are cut even without any"""

    def describe(self, max_length: int) -> str | None:
        """What has to be said about it, or None."""
        if not self.dropped and not self.too_long:
            return None
        parts = []
        if self.dropped:
            parts.append(
                f"{self.dropped:,} demonstrations of {self.shortened:,} of {self.documents:,} "
                "documents left out"
            )
        if self.too_long:
            parts.append(f"{self.too_long:,} documents cut from the left even without any")
        return f"{'; '.join(parts)}: the model reads {max_length:,} tokens"


class TaskShots:
    """The demonstrations of one loaded lm_eval task (`ConfigurableTask`), from now on.

    Args:
        how: which demonstrations; None keeps lm_eval's own drawing and cutting.
        vectors: for `knn`: called with the pool and the task's documents when they are needed.
    """

    def __init__(
        self,
        task: Any,
        how: Demonstrations | None,
        reader: Reader,
        vectors: FindVectors | None = None,
    ) -> None:
        self.task, self.how, self.reader, self.vectors = task, how, reader, vectors
        self.seed = 1234  # lm_eval's
        self.counts = ShotCounts()
        self._build = task.fewshot_context
        self._set_seed = task.set_fewshot_seed
        self._documents: list[Document] = []
        self._pool: Pool | None = None
        self._chooser: Chooser | None = None
        self._shown = _Shown(getattr(task, "sampler", None))
        self._last: tuple[tuple[int, ...], str | list[str]] | None = None
        self._kwargs: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}
        task.sampler = self._shown
        task.fewshot_context = self.context
        task.set_fewshot_seed = self.set_seed

    def set_seed(self, seed: int | None = None) -> None:
        """Stands in for the task's `set_fewshot_seed`: a new evaluation begins."""
        self._set_seed(seed)
        self.seed = 0 if seed is None else seed
        self.counts = ShotCounts()
        self._chooser = None

    def context(self, doc: Document, num_fewshot: int = 0, **kwargs: Any) -> str | list[str]:
        """Stands in for the task's `fewshot_context`: demonstrations, then the document.

        Raises:
            DataError: the pool has too few documents, or no classes to balance.
        """
        self._kwargs, self._last = kwargs, None
        self.counts.documents += 1
        self._shown.given, self._shown.last = None, []
        if self.how is None:
            built: str | list[str] = self._build(doc, num_fewshot=num_fewshot, **kwargs)
            return built
        chosen = self._choose(doc, num_fewshot) if num_fewshot else []
        longest = self._room_for_answer(doc)
        kept = drop_from_front(chosen, lambda ends: self._fits(doc, ends, longest))
        self.counts.dropped += len(chosen) - len(kept)
        self.counts.shortened += len(kept) < len(chosen)
        if not kept and (not chosen or len(kept) < len(chosen)):
            self.counts.too_long += not self._fits(doc, [], longest)
        return self._with(doc, kept)

    def again(self, doc: Document) -> str | list[str]:
        """The context of another document after the demonstrations that were shown last."""
        self._shown.given = self._shown.last
        built: str | list[str] = self._build(doc, num_fewshot=len(self._shown.last), **self._kwargs)
        return built

    def pool(self) -> Pool:
        """The documents that may be shown; read from the task once."""
        if self._pool is None:
            self._documents = _pool_documents(self.task)
            if not self._documents:
                raise DataError(
                    f"task {self.task.config.task}: no documents to show as demonstrations; give "
                    "the task a training_split or a fewshot_split, or ask for 0 shots."
                )
            self._pool = Pool(
                f"task {self.task.config.task}",
                [_input(self.task, doc, shown=True) for doc in self._documents],
                _classes(self.task, self._documents),
                [document_key(doc) for doc in self._documents],
            )
        return self._pool

    def query(self, doc: Document) -> Query:
        """The document as the choosers see it."""
        return Query(_input(self.task, doc), document_key(doc))

    def _choose(self, doc: Document, num: int) -> list[int]:
        assert self.how is not None
        if self._chooser is None:
            vectors = self.vectors(self) if self.how.method == "knn" and self.vectors else None
            self._chooser = make_chooser(self.how, self.pool(), self.seed, vectors)
        return self._chooser(self.query(doc), num)

    def _with(self, doc: Document, indices: Sequence[int]) -> str | list[str]:
        if self._last is not None and self._last[0] == tuple(indices):
            return self._last[1]
        self._shown.given = self._shown.last = [self._documents[index] for index in indices]
        built: str | list[str] = self._build(doc, num_fewshot=len(indices), **self._kwargs)
        self._last = tuple(indices), built
        return built

    def _room_for_answer(self, doc: Document) -> tuple[str, int]:
        """(text, tokens) that follow the context: the longest answer, or what is generated."""
        if self.task.OUTPUT_TYPE == "generate_until":
            settings = self.task.config.generation_kwargs or {}
            return "", int(settings.get("max_gen_toks", 256))
        if self.task.OUTPUT_TYPE == "multiple_choice" and not self.task.multiple_input:
            answers = self.task.doc_to_choice(doc)
        else:
            answers = [str(self.task.doc_to_target(doc))]
        delimiter = self.task.config.target_delimiter
        texts = [f"{delimiter}{answer}" for answer in answers]
        return max(texts, key=self._length), 0

    def _length(self, text: str) -> int:
        """Tokens of an answer; most tasks have the same ones in every document."""
        if text not in self._lengths:
            self._lengths[text] = len(self.reader.tok_encode(text))
        return self._lengths[text]

    def _fits(self, doc: Document, indices: Sequence[int], answer: tuple[str, int]) -> bool:
        text, num_tokens = answer
        built = self._with(doc, indices)
        contexts = built if isinstance(built, list) else [built]
        longest = max(len(self.reader.tok_encode(context + text)) for context in contexts)
        # the last token of an answer is predicted, never read
        return longest + num_tokens - bool(text) <= self.reader.max_length


class _Shown:
    """Stands in for a task's sampler: gives what was chosen, or remembers what it drew."""

    def __init__(self, drawing: Any) -> None:
        self.drawing = drawing
        self.given: list[Document] | None = None
        self.last: list[Document] = []

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any:
        """The demonstrations, in the order in which they are shown."""
        if self.given is not None:
            return self.given
        self.last = list(self.drawing.sample(n, eval_doc=eval_doc, df=df, **kwargs))
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drawing, name)


def _pool_documents(task: Any) -> list[Document]:
    """The documents that a task shows examples from; lm_eval's rule which split that is."""
    found = task.fewshot_docs()
    documents = [] if found is None else list(found)
    places = getattr(task.fewshot_cfg, "fewshot_indices", None)
    return documents if not places else [documents[place] for place in places]


def _input(task: Any, doc: Document, shown: bool = False) -> str:
    """The text of a document without its answer; of several inputs, all of them and what follows
    them, since which of them is right is the answer."""
    if task.multiple_input:
        return "\n".join([*task.doc_to_choice(doc), str(task.doc_to_target(doc))])
    template = task.fewshot_cfg.doc_to_text if shown else None
    return str(task.doc_to_text(doc, template))


def _classes(task: Any, documents: Sequence[Document]) -> list[str]:
    """What is balanced: the answer's text, or its number where choices differ by document."""
    shots = task.fewshot_cfg
    targets = [task.doc_to_target(doc, shots.doc_to_target) for doc in documents]
    first = [one[0] if isinstance(one, list) and one else one for one in targets]
    if task.config.doc_to_choice is None or not all(isinstance(one, int) for one in first):
        return [str(one) for one in first]
    choices = [tuple(task.doc_to_choice(doc, shots.doc_to_choice)) for doc in documents]
    if len(set(choices)) > 1 or task.multiple_input:
        return [str(one) for one in first]
    names = choices[0]
    return [names[one] if 0 <= one < len(names) else str(one) for one in first]
