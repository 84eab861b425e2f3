"""Where a user wants the decoder layers: Megatron's own settings for uneven pipeline stages, read as layers a virtual stage."""

from __future__ import annotations

import re

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass

PREFIX = "model."
LAYOUT = "pipeline_model_parallel_layout"
FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"
EMBEDDING, LOSS = "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWish:
    """One of Megatron's three ways to cut a model: a layout in letters, layers of the end stages, or embedding and loss
    counted as layers."""

    layout: str | None = None
    first: int | None = None
    last: int | None = None
    embedding: bool = False
    loss: bool = False

    def chunks(self, layers: int, pp: int, vp: int | None) -> tuple[int, ...] | None:
        """Decoder layers of each virtual stage, in order of execution; None where these stages cannot be cut so.

        >>> StageWish(layout="Et*3|t*4L").chunks(7, 2, None), StageWish(first=1).chunks(7, 4, None)
        ((3, 4), (1, 2, 2, 2))
        >>> StageWish(loss=True).chunks(7, 2, 2), StageWish(last=3).chunks(8, 4, None)
        ((2, 2, 2, 1), None)
        """
        if self.layout is not None:
            parts = decoder_layers(self.layout)
            return parts if len(parts) == pp * (vp or 1) and sum(parts) == layers else None
        if self.first is not None or self.last is not None:
            stages = self._ends(layers, pp)
        else:
            whole, rest = divmod(layers + self.embedding + self.loss, pp)
            stages = None if rest else [whole] * pp
        if stages is None or any(n % (vp or 1) for n in stages):
            return None
        chunks = [n // (vp or 1) for _ in range(vp or 1) for n in stages]
        chunks[0] -= self.embedding
        chunks[-1] -= self.loss
        return tuple(chunks) if min(chunks) >= 0 else None

    def _ends(self, layers: int, pp: int) -> list[int] | None:
        fixed = [n for n in (self.first, self.last) if n is not None]
        left, stages = layers - sum(fixed), pp - len(fixed)
        if stages < 0 or left < 0 or (left if not stages else left % stages):
            return None
        middle = [left // stages] * stages if stages else []
        return [n for n in (self.first,) if n is not None] + middle + [n for n in (self.last,) if n is not None]


def decoder_layers(text: str) -> tuple[int, ...]:
    """Decoder layers of each part of a layout.

    >>> decoder_layers("Et*2|(tt|)*2t*3mL")
    (2, 2, 2, 3)

    Raises `UsageError` for letters that it does not have.
    """
    return tuple(part.count("t") for part in letters(text).split("|"))


def letters(text: str) -> str:
    """A layout in Megatron's letters (E embedding, t decoder, m multi-token prediction, L loss) written out.

    >>> letters("Et*2|(tt|)*2tmL")
    'Ett|tt|tt|tmL'

    Raises `UsageError` for letters that it does not have.
    """
    plain = re.sub(r"[\s,]", "", text)
    while found := re.search(r"\(([^()]*)\)\*(\d+)", plain):
        plain = plain[: found.start()] + found[1] * int(found[2]) + plain[found.end() :]
    plain = re.sub(r"([EtmL|])\*(\d+)", lambda m: m[1] * int(m[2]), plain)
    if not re.fullmatch(r"[EtmL|]+", plain):
        raise UsageError(
            f"{PREFIX}{LAYOUT}={text}: {text!r} is no pipeline layout",
            hint="E embedding, t decoder, m multi-token prediction, L loss, | between stages: Et*4|t*3mL",
        )
    return plain
