"""Mean losses of samples under a model, which perplexity, IFD and loss are made from.

Of a sample with tokens x_1 .. x_n, of which those in A are learned from (the answer)::

    L_cond   mean over t in A of -log p(x_t | x_1 .. x_(t-1))
    L_alone  the same mean over the same tokens, each given the answer before it and nothing else

For L_alone the tokens of A follow one another after a single start token: the tokenizer's BOS, or
its EOS where there is no BOS. So the first answer token is predicted too, from that start alone,
and both means are over all of A. What the prompt and the answer are is known from the loss mask,
never found by tokenising the prompt once more. Several answers of one conversation are one A.

    perplexity, loss   L_cond, in nats: the logarithm of the perplexity, and in the same order
    ifd                exp(L_cond - L_alone), a ratio of perplexities: over 1 where the instruction
                       does not help (Li et al. 2024, arXiv:2402.00530)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ds_train.data.batch import collate, length_batches
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.engine.ranks import Ranks
from ds_train.model.head import LanguageModel

Floats = NDArray[np.float64]


def answers_alone(store: TokenStore, samples: Ints, start_id: int) -> TokenStore:
    """Of each of the samples: a start token, then what is learned from; nothing else."""
    answers = [store.tokens(index)[store.mask(index)] for index in samples.tolist()]
    start = np.array([start_id], store.flat_tokens.dtype)
    lengths = np.array([len(answer) + 1 for answer in answers], np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    mask = np.ones(int(ends[-1]), np.uint8)
    mask[ends - lengths] = 0
    return replace(
        store.select(samples),
        lengths=lengths,
        starts=ends - lengths,
        flat_tokens=np.concatenate([part for answer in answers for part in (start, answer)]),
        flat_mask=mask,
    )


@torch.inference_mode()
def mean_losses(
    model: LanguageModel, store: TokenStore, samples: Ints, pad_token_id: int
) -> Floats:
    """float64 [samples]: mean loss of the supervised tokens of each sample, alone in its row."""
    rows = [np.array([index]) for index in samples.tolist()]
    # Padding stands on the right and attention looks left: plain positions are the true ones.
    batch = collate(store, rows, pad_token_id=pad_token_id, with_positions=False)
    batch = batch.to(next(model.parameters()).device)
    losses, _ = model(
        batch.input_ids, batch.labels, num_supervised=batch.num_supervised, per_token=True
    )
    sums: Floats = losses.double().sum(dim=1).cpu().numpy()
    return sums / store.supervised[samples]


def score_store(
    measure: Callable[[Ints], Floats], store: TokenStore, max_tokens: int, ranks: Ranks, what: str
) -> Floats:
    """float64 [N]: `measure` of batches of samples, which the ranks share; equal on all of them.

    The batches are the same for any number of ranks, and so is what a batch gives.
    """
    values = np.zeros(store.num_samples)
    batches = list(length_batches(store.lengths, max_tokens))
    hidden = not (ranks.is_main and sys.stderr.isatty())
    mine = batches[ranks.rank :: ranks.world_size]
    for batch in tqdm(mine, desc=what, unit=" batches", disable=hidden, leave=False):
        values[batch] = measure(batch)
    return ranks.sum(torch.from_numpy(values)).numpy()


def perplexity_of(
    model: LanguageModel, store: TokenStore, pad_token_id: int
) -> Callable[[Ints], Floats]:
    """L_cond of a batch of samples."""
    return lambda samples: mean_losses(model, store, samples, pad_token_id)


def ifd_of(
    model: LanguageModel, store: TokenStore, pad_token_id: int, start_id: int
) -> Callable[[Ints], Floats]:
    """Instruction-following difficulty of a batch of samples."""

    def measure(samples: Ints) -> Floats:
        alone = answers_alone(store, samples, start_id)
        everyone = np.arange(len(samples))
        given = mean_losses(model, store, samples, pad_token_id)
        return np.exp(given - mean_losses(model, alone, everyone, pad_token_id))

    return measure
