"""Our models as lm_eval's `LM`: its requests in text become requests in tokens, and are scored.

Texts become tokens as in lm_eval's own `HFLM`: context and continuation are tokenised together and
the context's tokens cut off, spaces at the context's end belong to the continuation, an empty
context is BOS (else EOS). All ranks hold all requests and share the work below this class, so that
lm_eval sees one process, and the contexts that it draws do not depend on the number of ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ds_train.errors import DataError, ModelError
from ds_train.evaluate.generation_settings import GenerationSettings, Prompt
from ds_train.evaluate.requests import Request
from ds_train.evaluate.scorer import RequestScorer

Generate = Callable[[Sequence[Prompt]], list[str]]
"""The continuation of each prompt."""


class TaskModel(LM):
    """What lm_eval asks.

    Args:
        generate: for tasks of output_type generate_until; without it they are refused.
    """

    def __init__(
        self, scorer: RequestScorer, tokenizer: Any, generate: Generate | None = None
    ) -> None:
        super().__init__()
        self.scorer, self.tokenizer, self._generate = scorer, tokenizer, generate
        self._device = scorer.device
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prefix_token_id: int = eos if bos is None else bos
        """What stands before a text without context."""
        if self.prefix_token_id is None:
            raise ModelError(
                "evaluate.tasks: the tokenizer has neither a beginning-of-sequence nor an "
                'end-of-sequence token to put before a text; set "bos_token" in its '
                "tokenizer_config.json."
            )
        self._backend = _backend(tokenizer)
        self._prefix_text = tokenizer.decode(self.prefix_token_id)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        return self.scorer.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text; with the special tokens of the tokenizer's own choice when None."""
        return self.encode_all([string], add_special_tokens)[0]

    def encode_all(
        self, texts: Sequence[str], add_special_tokens: bool | None = None
    ) -> list[list[int]]:
        """Tokens of each text; BOS is not put before a text that begins with it."""
        if add_special_tokens is not None:
            return self._tokenised(texts, add_special_tokens)
        begun = [text.startswith(self._prefix_text) for text in texts]
        if not any(begun):
            return self._tokenised(texts, True)
        as_they_are = iter(
            self._tokenised([t for t, b in zip(texts, begun, strict=True) if b], False)
        )
        with_bos = iter(
            self._tokenised([t for t, b in zip(texts, begun, strict=True) if not b], True)
        )
        return [next(as_they_are if b else with_bos) for b in begun]

    def _tokenised(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is not None:
            found = self._backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
            return [one.ids for one in found]
        # longer than the model is no fault: what does not fit is cut from the left
        encoded = self.tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context, and of what follows it."""
        (request,) = self.encode_pairs([(context, continuation)])
        return list(request.context), list(request.continuation)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """Tokens of (context, continuation) pairs; each distinct text is tokenised once."""
        moved = [_space_moved(*pair) for pair in pairs]
        contexts = sorted({context for context, _ in moved if context})
        wholes = sorted({context + text for context, text in moved if context})
        alone = sorted({text for context, text in moved if not context})
        of_text = {
            **{
                ("", text): ids
                for text, ids in zip(alone, self.encode_all(alone, False), strict=True)
            },
            **{
                ("c", text): ids
                for text, ids in zip(contexts, self.encode_all(contexts), strict=True)
            },
            **{("w", text): ids for text, ids in zip(wholes, self.encode_all(wholes), strict=True)},
        }
        requests = []
        for context, text in moved:
            if context:
                before = of_text["c", context]
                requests.append(Request(before, of_text["w", context + text][len(before) :]))
                continue
            ids = of_text["", text]
            if ids[:1] == [self.prefix_token_id]:
                requests.append(Request(ids[:1], ids[1:]))
            else:
                requests.append(Request([self.prefix_token_id], ids))
        return requests

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would say so) of each request."""
        pairs = [request.args[:2] for request in requests]
        encoded = self.encode_pairs(pairs)
        self._check(requests, encoded)
        scores = self.scorer.score(encoded, progress="evaluate")
        return list(zip(scores.logprob.tolist(), scores.greedy.tolist(), strict=True))

    def _check(self, requests: list[Any], encoded: list[Request]) -> None:
        """A candidate that can't be scored is named by its task and document."""
        for request, ids in zip(requests, encoded, strict=True):
            length, longest = len(ids.continuation), self.max_length
            text = request.args[1]
            if 0 < length <= longest and text.strip(" "):
                continue
            where = f"task {request.task_name}, document {request.doc_id}"
            if length <= longest:
                raise DataError(
                    f"{where}: a candidate answer is empty; give it a text, or leave the document "
                    "out."
                )
            raise DataError(
                f"{where}: a candidate answer has {length:,} tokens, and the model reads at most "
                f"{longest:,} ({text[:60]!r}...); shorten it, or leave the document out."
            )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, in windows of the model's length."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for number, ids in enumerate(self.encode_all(texts)):
            for pair in get_rolling_token_windows(
                ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                windows.append(Request(*make_disjoint_window(pair)))
                owners.append(number)
        scores = self.scorer.score(windows, progress="evaluate")
        sums = [0.0] * len(texts)
        for owner, logprob in zip(owners, scores.logprob.tolist(), strict=True):
            sums[owner] += logprob
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model says to each context."""
        if self._generate is None:
            raise ModelError(
                f"task {requests[0].task_name}: has the model generate, which is not done while it "
                "trains; evaluate the run afterwards with ds-train evaluate."
            )
        contexts = self.encode_all([request.args[0] for request in requests])
        return self._generate(
            [
                Prompt(ids, GenerationSettings.of(request.args[1], f"task {request.task_name}"))
                for ids, request in zip(contexts, requests, strict=True)
            ]
        )

    def barrier(self) -> None:
        """All ranks wait in the scorer already."""


def _space_moved(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the context's end begin the continuation, as they do in its tokens."""
    num_spaces = len(context) - len(context.rstrip())
    if num_spaces == 0:
        return context, continuation
    return context[:-num_spaces], context[-num_spaces:] + continuation


def _backend(tokenizer: Any) -> Any:
    """The fast tokenizer below that of transformers, which takes twice as long; None without."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return None
    inner = copy.deepcopy(inner)
    inner.no_truncation()
    inner.no_padding()
    return inner
