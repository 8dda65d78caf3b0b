"""`padding`: replace the padding of the prompt by a neutral token (Kim & No, CVPR 2026 Findings)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from audit.errors import AuditError, UsageError
from audit.mitigation.families import supported
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.models.prompts import visible_positions

# Shapes: B rows of the denoiser, N images, P prompts, W windows, K text positions, D text width.


@dataclass(frozen=True)
class Padding(Method):
    """Replace the padding ids before the text encoder, and set embeddings to zero (Kim & No, CVPR 2026 Findings).

    For tokenizers that pad with EOS, such as that of Stable Diffusion 1.x: the EOS-like embeddings of the padding carry
    memorized content. Stable Diffusion 2.x pads with "!", the token of id 0 in the vocabulary of CLIP, which is
    therefore the neutral token. Only the prompts change, not the negative ones. The text encoder is causal, so the
    embeddings of BOS, words and EOS stay as they are until `zero_eos` sets that of EOS to zero. Where T5 stands beside
    CLIP (Stable Diffusion 3), only the positions of CLIP change.

    Zero is not a mask: the key and the value of a zero embedding are zero or the layer's bias, so the position still
    takes its share of the softmax and gives nothing.

    Attributes:
        token: The neutral token: a token of the vocabulary, its id, or None to leave the padding ids as they are.
        zero_eos: Whether to set the embedding of the EOS to zero.
        zero_share: The first fraction of the padding positions whose embeddings are set to zero. The paper's variant
            without a neutral token: `Padding(token=None, zero_eos=False, zero_share=0.7)`.
    """

    name: ClassVar[str] = "padding"

    token: str | int | None = "!"
    zero_eos: bool = True
    zero_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.zero_share <= 1:
            raise UsageError(f"zero_share is {self.zero_share}", hint="Give a fraction of the padding from 0 to 1.")

    def check(self, pipeline: Any) -> None:
        """Raise AuditError if the tokenizer does not pad with EOS, and UsageError if it does not know the token."""
        super().check(pipeline)
        family, _ = supported(pipeline)
        tokenizer = family.tokenizer(pipeline)
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            what = f"the tokenizer pads with {tokenizer.pad_token!r}, but this method is for padding with EOS"
            hint = "Stable Diffusion 2.x and T5 pad with a token of their own. Use another method."
            raise AuditError(what, where=type(pipeline).__name__, hint=hint, kind="unsupported_model")
        if self.token is not None:
            _id_of(tokenizer, self.token)

    def begin(self, prompts: Prompts) -> Effect:
        """Encode the prompts with neutral padding, and return the effect on one call.

        Args:
            prompts: The prompts of the call.

        Raises:
            UsageError: The call passes embeddings, whose padding ids cannot be replaced, or whose length is unknown.
        """
        counts_NW, windows = prompts.counts_NW(), prompts.windows
        clip_K = torch.cat([torch.full((window.length,), window.has_bos) for window in windows])
        prompt_NK = visible_positions(counts_NW, windows)
        eos_NK = prompt_NK & ~visible_positions(counts_NW - 1, windows) & clip_K
        changed_NKD = prompts.encoded.hidden_NKD
        if self.token is not None:
            changed_NKD = self._encoded(prompts, counts_NW[:: prompts.each, 0])
        length_W = torch.tensor([window.length for window in windows])
        zero_NW = ((length_W - counts_NW) * self.zero_share).round().long()
        zero_NK = visible_positions(counts_NW + zero_NW, windows) & ~prompt_NK & clip_K
        if self.zero_eos:
            zero_NK |= eos_NK
        changed_NKD = changed_NKD.masked_fill(zero_NK.to(changed_NKD.device)[..., None], 0)
        own_NK = (~prompt_NK & clip_K) | eos_NK
        return _Padded(changed_NKD, own_NK.to(changed_NKD.device))

    def _encoded(self, prompts: Prompts, counts_P: Tensor) -> Tensor:
        if prompts.given["prompt_embeds"] is not None:
            what = "the call passes prompt_embeds, whose padding tokens cannot be replaced"
            raise UsageError(what, hint="Pass prompt= instead, or give Padding(token=None).")
        assert self.token is not None
        neutral = _id_of(prompts.pipeline.tokenizer, self.token)
        encoders = [getattr(prompts.pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
        with ExitStack() as replacing:
            for encoder in filter(None, encoders):
                replacing.enter_context(_replacing(encoder, counts_P, neutral))
            return prompts.encode(do_classifier_free_guidance=False).hidden_NKD


class _Padded(Effect):
    """Puts the changed embeddings of EOS and padding in place of those of the call."""

    def __init__(self, changed_NKD: Tensor, own_NK: Tensor) -> None:
        self._changed_NKD, self._own_NK = changed_NKD, own_NK

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        if not forward.on_N.any():
            return hidden_BKD, None
        on_NK1 = (self._own_NK & forward.on_N.to(self._own_NK.device)[:, None])[..., None]
        first = len(hidden_BKD) - len(self._own_NK)
        changed_NKD = torch.where(on_NK1, self._changed_NKD.to(hidden_BKD.dtype), hidden_BKD[first:])
        return torch.cat([hidden_BKD[:first], changed_NKD]), None


@contextmanager
def _replacing(encoder: Any, counts_P: Tensor, neutral: int) -> Iterator[None]:
    """Replace the padding ids of prompts in the calls of this thread's text encoder, inside the `with` block."""
    thread = threading.get_ident()

    def replace(_encoder: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        ids_PK = args[0] if args else kwargs["input_ids"]
        prompt_PK = torch.arange(ids_PK.shape[1]) < counts_P[:, None]
        replaced_PK = torch.where(prompt_PK.to(ids_PK.device), ids_PK, neutral)
        return ((replaced_PK, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": replaced_PK})

    handle = encoder.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _id_of(tokenizer: Any, token: str | int) -> int:
    """Return the id of a token.

    Raises:
        UsageError: The tokenizer does not know the token.
    """
    vocabulary = tokenizer.get_vocab()
    if isinstance(token, str) and token in vocabulary:
        return int(vocabulary[token])
    if isinstance(token, int) and 0 <= token < len(tokenizer):
        return token
    what = f"the tokenizer does not know the token {token!r}"
    raise UsageError(what, hint="Give a token of its vocabulary, or an id. Id 0 is '!' in the vocabulary of CLIP.")
