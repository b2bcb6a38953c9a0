"""The highest moment of a micro-batch: what stands at once, from the loss to the first layer.

    loss         all that the forward pass has kept, a chunk of logits, the loss's gradients
    last norm    the same activations, and the norm's own sums in fp32; the chunk is gone
    last layer   activations of the layers, with recomputation the inputs of all and one layer
                 whole; what comes up in that layer, and the largest gradient of a weight
    embeddings   no activation any more, but the gradient of the largest weight where that trains

Of these one is the peak: with a large vocabulary and few tokens the loss, else a layer. Before,
the first and the third were added up, which was 12 % too much in a run with recomputation.
"""

from __future__ import annotations

from ds_train.plan.activations import Activations
from ds_train.plan.loss_memory import LossMemory
from ds_train.plan.setting import Setting

Parts = list[tuple[str, int]]


def highest_moment(setting: Setting, kept: Activations, loss: LossMemory) -> Parts:
    """Names and bytes of what stands in it."""
    return max(_moments(setting, kept, loss), key=lambda parts: sum(size for _, size in parts))


def _moments(setting: Setting, kept: Activations, loss: LossMemory) -> list[Parts]:
    recompute = setting.config.model.gradient_checkpointing
    name = "activations, checkpointed" if recompute else "activations"
    begun = (name, kept.at_the_loss(recompute=recompute))
    inside, outside = (setting.width * largest(setting, layers=one) for one in (True, False))
    made = "largest gradient being made"
    return [
        [
            begun,
            ("loss, gradients kept", loss.gradients),
            ("loss, chunk of logits", loss.chunk),
        ],
        [begun, ("last norm, passing", kept.passing_norm)],
        [
            (name, kept.in_a_layer(recompute=recompute)),
            ("last layer, passing", kept.passing_layer),
            (made, inside),
        ],
        [(made, outside)],
    ]


def largest(setting: Setting, *, layers: bool) -> int:
    """Elements of the largest parameter that trains in the layers, or outside of them."""
    return max(
        (
            one.num_elements
            for one in setting.trainable.trained
            if (one.module.layer is not None) is layers
        ),
        default=0,
    )
